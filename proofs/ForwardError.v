(** Error of a computed network at a sample and around it: docs/soundness.md, section 4;
    robustcert/network/forward_error.py. *)

Require Import Reals Lra Lia Psatz List.
From Robustcert Require Import Sums Vectors Lipschitz Margin.
Import ListNotations.
Open Scope R_scope.

Section Network.

(** Numbers of inputs, a sample, a distance, and the inputs that the arithmetic can be given. *)
Variables (n : nat) (x : vector) (r : R) (representable : vector -> Prop).

Hypothesis centre : representable x.
Hypothesis room : 0 < r.

(** After some operations: f is real and P-Lipschitz with m outputs, g is computed, and they differ
    by at most alpha + beta d at distance d < r. *)
Record state := State { alpha : R; beta : R; steep : R }.

Definition within (m : nat) (f g : vector -> vector) (s : state) : Prop :=
  0 <= alpha s /\ 0 <= beta s /\ 0 <= steep s /\ lipschitz n m (steep s) f
  /\ computed_within n m f g representable (alpha s) (beta s) x r.

(** One operation F, computed as G, with bound N and local error a |z| + b. *)
Record layer := Layer {
  width_out : nat; real : vector -> vector; machine : vector -> vector;
  N : R; a : R; b : R }.

Definition sound (m : nat) (g : vector -> vector) (op : layer) : Prop :=
  0 <= N op /\ 0 <= a op /\ 0 <= b op /\ lipschitz m (width_out op) (N op) (real op)
  /\ forall y, representable y -> distance n x y < r ->
     distance (width_out op) (machine op (g y)) (real op (g y)) <= a op * norm m (g y) + b op.

(** What [forward_error] adds up, or more: z is what is computed at the sample. *)
Definition charges (m : nat) (op : layer) (z : vector) (s s' : state) : Prop :=
  N op * alpha s + (a op * (norm m z + 2 * alpha s) + b op) <= alpha s'
  /\ N op * beta s + a op * (steep s + beta s) <= beta s'
  /\ N op * steep s <= steep s'.

Lemma norm_difference : forall m u v, norm m u <= norm m v + distance m u v.
Proof.
  intros m u v; rewrite (norm_ext m u (vadd v (vsub u v))) by (intros; unfold vadd, vsub; ring).
  apply norm_triangle.
Qed.

(** "The computed activations differ from the real ones by at most D_l = N D_{l-1} + a |z| + b";
    "at distance r the computed input has norm at most |z| + P r + D(0) + D(r)". *)
Theorem forward_error_step : forall m f g op s s',
  within m f g s -> sound m g op -> charges m op (g x) s s' ->
  within (width_out op) (fun y => real op (f y)) (fun y => machine op (g y)) s'.
Proof.
  intros m f g op s s' (A & B & P & L & W) (HN & Ha & Hb & LN & E) (C1 & C2 & C3).
  assert (Z := norm_nonneg m (g x)).
  assert (0 <= a op * (norm m (g x) + 2 * alpha s)) by (apply Rmult_le_pos; lra).
  assert (0 <= N op * alpha s) by (apply Rmult_le_pos; lra).
  assert (0 <= N op * beta s) by (apply Rmult_le_pos; lra).
  assert (0 <= a op * (steep s + beta s)) by (apply Rmult_le_pos; lra).
  assert (0 <= N op * steep s) by (apply Rmult_le_pos; lra).
  unfold within; repeat split; try lra.
  - apply (lipschitz_weaken _ _ _ _ _ C3), (lipschitz_compose n m); assumption.
  - intros y Hy Hr; specialize (E y Hy Hr).
    assert (D := distance_nonneg n x y).
    generalize (W y Hy Hr) (W x centre); rewrite (distance_same n x); intros Wy Wx.
    specialize (Wx room).
    eapply Rle_trans; [apply (distance_triangle _ _ (real op (g y)))|].
    specialize (LN (g y) (f y)).
    assert (N op * distance m (g y) (f y) <= N op * (alpha s + beta s * distance n x y))
      by (apply Rmult_le_compat_l; assumption).
    (* The computed input at y. *)
    assert (Size : norm m (g y) <= norm m (g x) + 2 * alpha s + (steep s + beta s) * distance n x y).
    { generalize (norm_difference m (g y) (g x)) (distance_triangle m (g y) (f y) (g x))
        (distance_triangle m (f y) (f x) (g x)) (L x y).
      rewrite (distance_sym m (f y) (f x)), (distance_sym m (f x) (g x)); lra. }
    assert (a op * norm m (g y)
            <= a op * (norm m (g x) + 2 * alpha s + (steep s + beta s) * distance n x y))
      by (apply Rmult_le_compat_l; assumption).
    assert ((N op * beta s + a op * (steep s + beta s)) * distance n x y
            <= beta s' * distance n x y) by (apply Rmult_le_compat_r; assumption).
    lra.
Qed.

(** A list of operations, the first one first. *)
Fixpoint evaluate_real (network : list layer) (z : vector) : vector :=
  match network with
  | [] => z
  | op :: rest => evaluate_real rest (real op z)
  end.

Fixpoint evaluate_machine (network : list layer) (z : vector) : vector :=
  match network with
  | [] => z
  | op :: rest => evaluate_machine rest (machine op z)
  end.

Fixpoint logits (m : nat) (network : list layer) : nat :=
  match network with
  | [] => m
  | op :: rest => logits (width_out op) rest
  end.

(** Every operation is sound where the computation takes it, and s' is at least what is added up. *)
Fixpoint propagates (m : nat) (g : vector -> vector) (network : list layer) (s s' : state) : Prop :=
  match network with
  | [] => s = s'
  | op :: rest => exists next, sound m g op /\ charges m op (g x) s next
      /\ propagates (width_out op) (fun y => machine op (g y)) rest next s'
  end.

Lemma forward_error_from : forall network m f g s s',
  within m f g s -> propagates m g network s s' ->
  within (logits m network) (fun y => evaluate_real network (f y))
         (fun y => evaluate_machine network (g y)) s'.
Proof.
  induction network as [|op rest IH]; intros m f g s s' W Pr; simpl in *.
  - subst s'; exact W.
  - destruct Pr as (next & So & Ch & Pr).
    apply (IH (width_out op) (fun y => real op (f y)) (fun y => machine op (g y)) next s');
      [|exact Pr].
    apply (forward_error_step m f g op s next); assumption.
Qed.

(** From the input itself, without an error: D is affine in the distance. *)
Theorem forward_error_network : forall network s,
  propagates n (fun y => y) network (State 0 0 1) s ->
  within (logits n network) (evaluate_real network) (evaluate_machine network) s.
Proof.
  intros network s Pr.
  apply (forward_error_from network n (fun y => y) (fun y => y) (State 0 0 1) s); [|exact Pr].
  unfold within; simpl; repeat split; try lra; [apply lipschitz_identity|].
  intros y _ _; rewrite distance_same, Rmult_0_l; lra.
Qed.

(** The claim for a network: with alpha and beta of [forward_error_network], logits that keep their
    order in both functions within r = min_j (m_j - 2 sqrt 2 alpha) / (K_cj + sqrt 2 beta). *)
Theorem certificate : forall network s C c K,
  propagates n (fun y => y) network (State 0 0 1) s ->
  logits n network = C -> (c < C)%nat ->
  let f := evaluate_real network in
  let g := evaluate_machine network in
  pairwise n C c K f ->
  (forall j, (j < C)%nat -> j <> c ->
     2 * sqrt 2 * alpha s < g x c - g x j
     /\ (K j + sqrt 2 * beta s) * r <= g x c - g x j - 2 * sqrt 2 * alpha s) ->
  forall y, distance n x y < r ->
  unique_largest C c (f y) /\ (representable y -> unique_largest C c (g y)).
Proof.
  intros network s C c K Pr HC Hc f g HK Hr.
  destruct (forward_error_network network s Pr) as (A & B & _ & _ & W); rewrite HC in W.
  apply (margin_rounding n C c f g representable K (alpha s) (beta s) x r); assumption.
Qed.

End Network.
