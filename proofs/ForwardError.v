(** Error of a computed network at a sample and around it: docs/soundness.md, section 4;
    robustcert/network/forward_error.py. *)

Require Import Reals Lra Lia Psatz List.
From Robustcert Require Import Sums Vectors Lipschitz Margin.
Import ListNotations.
Open Scope R_scope.

Section Network.

(** Numbers of inputs, a sample, a distance, and the inputs that the arithmetic can be given. *)
Variables (n : nat) (x : vector) (r : R) (representable : vector -> Prop).

(** After some operations: f is real and P-Lipschitz with m outputs; g is computed by the deployed
    network and differs from f by at most alpha + beta d at distance d < r; z is what the certifier
    computed at the sample, within alpha. The orders of their sums may be different. *)
Record state := State { alpha : R; beta : R; steep : R }.

Definition within (m : nat) (f g : vector -> vector) (z : vector) (s : state) : Prop :=
  0 <= alpha s /\ 0 <= beta s /\ 0 <= steep s /\ lipschitz n m (steep s) f
  /\ distance m z (f x) <= alpha s
  /\ computed_within n m f g representable (alpha s) (beta s) x r.

(** One operation, as the real function, by the deployed network and by the certifier, with bound N
    and local error a |z| + b. *)
Record layer := Layer {
  width_out : nat; real : vector -> vector; machine : vector -> vector;
  certifier : vector -> vector; N : R; a : R; b : R }.

Definition sound (m : nat) (g : vector -> vector) (z : vector) (op : layer) : Prop :=
  0 <= N op /\ 0 <= a op /\ 0 <= b op /\ lipschitz m (width_out op) (N op) (real op)
  /\ distance (width_out op) (certifier op z) (real op z) <= a op * norm m z + b op
  /\ forall y, representable y -> distance n x y < r ->
     distance (width_out op) (machine op (g y)) (real op (g y)) <= a op * norm m (g y) + b op.

(** What [forward_error] adds up, or more: z is what the certifier computed. *)
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
Theorem forward_error_step : forall m f g z op s s',
  within m f g z s -> sound m g z op -> charges m op z s s' ->
  within (width_out op) (fun y => real op (f y)) (fun y => machine op (g y)) (certifier op z) s'.
Proof.
  intros m f g z op s s' (A & B & P & L & Wx & W) (HN & Ha & Hb & LN & Ez & E) (C1 & C2 & C3).
  assert (Z := norm_nonneg m z).
  assert (0 <= a op * (norm m z + 2 * alpha s)) by (apply Rmult_le_pos; lra).
  assert (0 <= N op * alpha s) by (apply Rmult_le_pos; lra).
  assert (0 <= N op * beta s) by (apply Rmult_le_pos; lra).
  assert (0 <= a op * (steep s + beta s)) by (apply Rmult_le_pos; lra).
  assert (0 <= N op * steep s) by (apply Rmult_le_pos; lra).
  unfold within; repeat split; try lra.
  - apply (lipschitz_weaken _ _ _ _ _ C3), (lipschitz_compose n m); assumption.
  - eapply Rle_trans; [apply (distance_triangle _ _ (real op z))|].
    specialize (LN z (f x)).
    assert (N op * distance m z (f x) <= N op * alpha s) by (apply Rmult_le_compat_l; assumption).
    assert (a op * norm m z <= a op * (norm m z + 2 * alpha s)) by (apply Rmult_le_compat_l; lra).
    lra.
  - intros y Hy Hr; specialize (E y Hy Hr).
    assert (D := distance_nonneg n x y).
    specialize (W y Hy Hr).
    eapply Rle_trans; [apply (distance_triangle _ _ (real op (g y)))|].
    specialize (LN (g y) (f y)).
    assert (N op * distance m (g y) (f y) <= N op * (alpha s + beta s * distance n x y))
      by (apply Rmult_le_compat_l; assumption).
    (* The computed input at y. *)
    assert (Size : norm m (g y) <= norm m z + 2 * alpha s + (steep s + beta s) * distance n x y).
    { generalize (norm_difference m (g y) z) (distance_triangle m (g y) (f y) z)
        (distance_triangle m (f y) (f x) z) (L x y).
      rewrite (distance_sym m (f y) (f x)), (distance_sym m (f x) z); lra. }
    assert (a op * norm m (g y)
            <= a op * (norm m z + 2 * alpha s + (steep s + beta s) * distance n x y))
      by (apply Rmult_le_compat_l; assumption).
    assert ((N op * beta s + a op * (steep s + beta s)) * distance n x y
            <= beta s' * distance n x y) by (apply Rmult_le_compat_r; assumption).
    lra.
Qed.

(** ** A sum of branches *)

Definition vsum (k : nat) (v : nat -> vector) : vector := fun i => sum k (fun j => v j i).

Lemma norm_vsum : forall m k v, norm m (vsum k v) <= sum k (fun j => norm m (v j)).
Proof.
  intros m k v; induction k as [|k IH]; simpl.
  - unfold vsum; simpl; rewrite norm_zero; lra.
  - change (vsum (S k) v) with (vadd (vsum k v) (v k)).
    eapply Rle_trans; [apply norm_triangle|lra].
Qed.

Lemma lipschitz_vsum : forall p m k (K : nat -> R) (f : nat -> vector -> vector),
  (forall j, (j < k)%nat -> lipschitz p m (K j) (f j)) ->
  lipschitz p m (sum k K) (fun y => vsum k (fun j => f j y)).
Proof.
  intros p m k K f H y z; unfold distance at 1.
  rewrite (norm_ext m _ (vsum k (fun j => vsub (f j y) (f j z))))
    by (intros; unfold vsub, vsum; rewrite sum_minus; reflexivity).
  eapply Rle_trans; [apply norm_vsum|]; rewrite <- sum_scal_r.
  apply sum_le; intros j Hj; apply (H j Hj).
Qed.

(** k branches, whose sum is computed within gam times the sizes of its terms in every entry
    ([number_sum_error] of Rounding.v, with k terms). *)
Theorem forward_error_sum : forall m k (f g : nat -> vector -> vector) (z : nat -> vector)
    (h : vector -> vector) hz gam (s : nat -> state) s',
  (forall j, (j < k)%nat -> within m (f j) (g j) (z j) (s j)) -> 0 <= gam ->
  (forall i, (i < m)%nat -> Rabs (hz i - vsum k z i) <= gam * sum k (fun j => Rabs (z j i))) ->
  (forall y, representable y -> distance n x y < r -> forall i, (i < m)%nat ->
     Rabs (h y i - vsum k (fun j => g j y) i) <= gam * sum k (fun j => Rabs (g j y i))) ->
  sum k (fun j => alpha (s j)) + gam * sum k (fun j => norm m (z j) + 2 * alpha (s j))
    <= alpha s' ->
  sum k (fun j => beta (s j))
    + gam * (sum k (fun j => steep (s j)) + sum k (fun j => beta (s j))) <= beta s' ->
  sum k (fun j => steep (s j)) <= steep s' ->
  within m (fun y => vsum k (fun j => f j y)) h hz s'.
Proof.
  intros m k f g z h hz gam s s' W Hg Hz Hh HA HB HP.
  assert (A0 : 0 <= sum k (fun j => alpha (s j))) by (apply sum_nonneg; intros j Hj; apply (W j Hj)).
  assert (B0 : 0 <= sum k (fun j => beta (s j))) by (apply sum_nonneg; intros j Hj; apply (W j Hj)).
  assert (P0 : 0 <= sum k (fun j => steep (s j))) by (apply sum_nonneg; intros j Hj; apply (W j Hj)).
  assert (S0 : 0 <= sum k (fun j => norm m (z j) + 2 * alpha (s j))).
  { apply sum_nonneg; intros j Hj; destruct (W j Hj) as (A & _).
    generalize (norm_nonneg m (z j)); lra. }
  assert (0 <= gam * sum k (fun j => norm m (z j) + 2 * alpha (s j)))
    by (apply Rmult_le_pos; assumption).
  assert (0 <= gam * (sum k (fun j => steep (s j)) + sum k (fun j => beta (s j))))
    by (apply Rmult_le_pos; lra).
  (* Rounding of a sum of vectors v. *)
  assert (Own : forall w v,
    (forall i, (i < m)%nat -> Rabs (w i - vsum k v i) <= gam * sum k (fun j => Rabs (v j i))) ->
    distance m w (vsum k v) <= gam * sum k (fun j => norm m (v j))).
  { intros w v H'; apply Rle_trans with (norm m (vscale gam (vsum k (fun j i => Rabs (v j i))))).
    - apply norm_le; intros i Hi; eapply Rle_trans; [apply (H' i Hi)|apply Rle_abs].
    - rewrite norm_scale, (Rabs_pos_eq gam Hg); apply Rmult_le_compat_l; [exact Hg|].
      eapply Rle_trans; [apply norm_vsum|].
      apply Req_le, sum_ext; intros j _; apply norm_abs. }
  unfold within; repeat split; try lra.
  - apply (lipschitz_weaken _ _ _ _ _ HP), lipschitz_vsum; intros j Hj; apply (W j Hj).
  - eapply Rle_trans; [apply (distance_triangle m _ (vsum k z))|].
    specialize (Own hz z Hz).
    assert (Inherited : distance m (vsum k z) (vsum k (fun j => f j x)) <= sum k (fun j => alpha (s j))).
    { unfold distance at 1; rewrite (norm_ext m _ (vsum k (fun j => vsub (z j) (f j x))))
        by (intros; unfold vsub, vsum; rewrite sum_minus; reflexivity).
      eapply Rle_trans; [apply norm_vsum|]; apply sum_le; intros j Hj.
      destruct (W j Hj) as (_ & _ & _ & _ & E & _); exact E. }
    assert (sum k (fun j => norm m (z j)) <= sum k (fun j => norm m (z j) + 2 * alpha (s j))).
    { apply sum_le; intros j Hj; destruct (W j Hj) as (A & _); lra. }
    assert (gam * sum k (fun j => norm m (z j))
            <= gam * sum k (fun j => norm m (z j) + 2 * alpha (s j)))
      by (apply Rmult_le_compat_l; assumption).
    lra.
  - intros y Hy Hr; assert (D := distance_nonneg n x y).
    specialize (Own (h y) (fun j => g j y) (Hh y Hy Hr)).
    assert (Inherited : distance m (vsum k (fun j => g j y)) (vsum k (fun j => f j y))
                        <= sum k (fun j => alpha (s j) + beta (s j) * distance n x y)).
    { unfold distance at 1; rewrite (norm_ext m _ (vsum k (fun j => vsub (g j y) (f j y))))
        by (intros; unfold vsub, vsum; rewrite sum_minus; reflexivity).
      eapply Rle_trans; [apply norm_vsum|]; apply sum_le; intros j Hj.
      destruct (W j Hj) as (_ & _ & _ & _ & _ & E); apply (E y Hy Hr). }
    rewrite sum_plus, sum_scal_r in Inherited.
    assert (Sizes : sum k (fun j => norm m (g j y))
      <= sum k (fun j => norm m (z j) + 2 * alpha (s j))
         + (sum k (fun j => steep (s j)) + sum k (fun j => beta (s j))) * distance n x y).
    { rewrite <- sum_plus, <- sum_scal_r, <- sum_plus; apply sum_le; intros j Hj.
      destruct (W j Hj) as (_ & _ & _ & L & Ex & E); specialize (E y Hy Hr).
      generalize (norm_difference m (g j y) (z j)) (distance_triangle m (g j y) (f j y) (z j))
        (distance_triangle m (f j y) (f j x) (z j)) (L x y).
      rewrite (distance_sym m (f j y) (f j x)), (distance_sym m (f j x) (z j)); lra. }
    eapply Rle_trans; [apply (distance_triangle m _ (vsum k (fun j => g j y)))|].
    assert (gam * sum k (fun j => norm m (g j y))
      <= gam * (sum k (fun j => norm m (z j) + 2 * alpha (s j))
         + (sum k (fun j => steep (s j)) + sum k (fun j => beta (s j))) * distance n x y))
      by (apply Rmult_le_compat_l; assumption).
    assert ((sum k (fun j => beta (s j))
             + gam * (sum k (fun j => steep (s j)) + sum k (fun j => beta (s j)))) * distance n x y
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

Fixpoint evaluate_certifier (network : list layer) (z : vector) : vector :=
  match network with
  | [] => z
  | op :: rest => evaluate_certifier rest (certifier op z)
  end.

Fixpoint logits (m : nat) (network : list layer) : nat :=
  match network with
  | [] => m
  | op :: rest => logits (width_out op) rest
  end.

(** Every operation is sound where the computations take it, and s' is what is added up. *)
Fixpoint propagates (m : nat) (g : vector -> vector) (z : vector) (network : list layer)
    (s s' : state) : Prop :=
  match network with
  | [] => s = s'
  | op :: rest => exists next, sound m g z op /\ charges m op z s next
      /\ propagates (width_out op) (fun y => machine op (g y)) (certifier op z) rest next s'
  end.

Lemma forward_error_from : forall network m f g z s s',
  within m f g z s -> propagates m g z network s s' ->
  within (logits m network) (fun y => evaluate_real network (f y))
         (fun y => evaluate_machine network (g y)) (evaluate_certifier network z) s'.
Proof.
  induction network as [|op rest IH]; intros m f g z s s' W Pr; simpl in *.
  - subst s'; exact W.
  - destruct Pr as (next & So & Ch & Pr).
    apply (IH (width_out op) (fun y => real op (f y)) (fun y => machine op (g y)) (certifier op z)
      next s'); [|exact Pr].
    apply (forward_error_step m f g z op s next); assumption.
Qed.

(** From the input itself, without an error: D is affine in the distance. *)
Theorem forward_error_network : forall network s,
  propagates n (fun y => y) x network (State 0 0 1) s ->
  within (logits n network) (evaluate_real network) (evaluate_machine network)
         (evaluate_certifier network x) s.
Proof.
  intros network s Pr.
  apply (forward_error_from network n (fun y => y) (fun y => y) x (State 0 0 1) s); [|exact Pr].
  unfold within; simpl; repeat split; try lra; [apply lipschitz_identity| |].
  - rewrite distance_same; lra.
  - intros y _ _; rewrite distance_same, Rmult_0_l; lra.
Qed.

(** The claim, however the operations were put together: logits keep their order in both functions
    within r = min_j (m_j - 2 sqrt 2 alpha) / (K_cj + sqrt 2 beta). *)
Theorem certificate : forall C c K f g z s,
  within C f g z s -> (c < C)%nat -> pairwise n C c K f ->
  (forall j, (j < C)%nat -> j <> c ->
     2 * sqrt 2 * alpha s < z c - z j
     /\ (K j + sqrt 2 * beta s) * r <= z c - z j - 2 * sqrt 2 * alpha s) ->
  forall y, distance n x y < r ->
  unique_largest C c (f y) /\ (representable y -> unique_largest C c (g y)).
Proof.
  intros C c K f g z s (A & B & _ & _ & Z & W) Hc HK Hr.
  apply (margin_rounding n C c f g z representable K (alpha s) (beta s) x r); assumption.
Qed.

(** The same for a list of operations. *)
Theorem certificate_network : forall network s C c K,
  propagates n (fun y => y) x network (State 0 0 1) s ->
  logits n network = C -> (c < C)%nat ->
  let f := evaluate_real network in
  let g := evaluate_machine network in
  let z := evaluate_certifier network x in
  pairwise n C c K f ->
  (forall j, (j < C)%nat -> j <> c ->
     2 * sqrt 2 * alpha s < z c - z j
     /\ (K j + sqrt 2 * beta s) * r <= z c - z j - 2 * sqrt 2 * alpha s) ->
  forall y, distance n x y < r ->
  unique_largest C c (f y) /\ (representable y -> unique_largest C c (g y)).
Proof.
  intros network s C c K Pr HC Hc f g z HK Hr; subst C.
  apply (certificate _ c K f g z s); try assumption.
  apply forward_error_network, Pr.
Qed.

End Network.
