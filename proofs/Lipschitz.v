(** Lipschitz constants in l2 of compositions, sums and concatenations.

    docs/soundness.md, section 2: "L is the product of the operations' bounds, over the sum of
    branches the sum". *)

Require Import Reals Lra Lia Psatz List.
From Robustcert Require Import Sums Vectors.
Import ListNotations.
Open Scope R_scope.

(** f : R^n -> R^m moves no two points further apart than K times their distance. *)
Definition lipschitz (n m : nat) (K : R) (f : vector -> vector) : Prop :=
  forall x y, distance m (f x) (f y) <= K * distance n x y.

(** The same of a function with values in R. *)
Definition lipschitz_real (n : nat) (K : R) (f : vector -> R) : Prop :=
  forall x y, Rabs (f x - f y) <= K * distance n x y.

Lemma lipschitz_weaken : forall n m K K' f, K <= K' -> lipschitz n m K f -> lipschitz n m K' f.
Proof.
  intros n m K K' f HK H x y; eapply Rle_trans; [apply H|].
  apply Rmult_le_compat_r; [apply distance_nonneg|exact HK].
Qed.

Lemma lipschitz_identity : forall n, lipschitz n n 1 (fun x => x).
Proof. intros n x y; lra. Qed.

Theorem lipschitz_compose : forall n m p K L f g,
  0 <= L -> lipschitz n m K f -> lipschitz m p L g -> lipschitz n p (L * K) (fun x => g (f x)).
Proof.
  intros n m p K L f g HL Hf Hg x y.
  eapply Rle_trans; [apply Hg|].
  rewrite Rmult_assoc; apply Rmult_le_compat_l; [exact HL|apply Hf].
Qed.

(** A sum of two branches; of more, one after another. *)
Theorem lipschitz_sum : forall n m K L f g,
  lipschitz n m K f -> lipschitz n m L g ->
  lipschitz n m (K + L) (fun x => vadd (f x) (g x)).
Proof.
  intros n m K L f g Hf Hg x y; unfold distance at 1.
  rewrite (norm_ext m _ (vadd (vsub (f x) (f y)) (vsub (g x) (g y))))
    by (intros; unfold vsub, vadd; ring).
  eapply Rle_trans; [apply norm_triangle|].
  specialize (Hf x y); specialize (Hg x y); unfold distance in *; lra.
Qed.

(** The first m values are those of f, the others those of g. *)
Definition concatenate (m : nat) (u v : vector) : vector :=
  fun i => if Nat.ltb i m then u i else v (i - m)%nat.

Lemma square_concatenate : forall m p u v,
  square (m + p) (concatenate m u v) = square m u + square p v.
Proof.
  intros m p u v; unfold square; rewrite sum_split; f_equal; apply sum_ext; intros i Hi;
    unfold concatenate.
  - destruct (Nat.ltb_spec i m); [reflexivity|lia].
  - destruct (Nat.ltb_spec (m + i) m); [lia|].
    replace (m + i - m)%nat with i by lia; reflexivity.
Qed.

Theorem lipschitz_concatenate : forall n m p K L f g,
  0 <= K -> 0 <= L -> lipschitz n m K f -> lipschitz n p L g ->
  lipschitz n (m + p) (sqrt (K * K + L * L)) (fun x => concatenate m (f x) (g x)).
Proof.
  intros n m p K L f g HK HL Hf Hg x y.
  specialize (Hf x y); specialize (Hg x y).
  generalize (distance_nonneg n x y) (distance_nonneg m (f x) (f y))
    (distance_nonneg p (g x) (g y)); intros D Df Dg.
  assert (S0 : 0 <= K * K + L * L) by nra.
  generalize (sqrt_pos (K * K + L * L)) (sqrt_sqrt _ S0); intros Sp Ss.
  apply le_of_squares; [apply Rmult_le_pos; assumption|].
  unfold distance at 1 2; rewrite norm_square.
  rewrite (square_ext (m + p) _ (concatenate m (vsub (f x) (f y)) (vsub (g x) (g y)))).
  2: { intros i _; unfold vsub, concatenate; destruct (Nat.ltb i m); reflexivity. }
  rewrite square_concatenate, <- !norm_square.
  fold (distance m (f x) (f y)) (distance p (g x) (g y)).
  replace (sqrt (K * K + L * L) * distance n x y * (sqrt (K * K + L * L) * distance n x y))
    with ((sqrt (K * K + L * L) * sqrt (K * K + L * L)) * (distance n x y * distance n x y)) by ring.
  rewrite Ss.
  assert (distance m (f x) (f y) * distance m (f x) (f y)
          <= (K * distance n x y) * (K * distance n x y)) by (apply Rmult_le_compat; assumption).
  assert (distance p (g x) (g y) * distance p (g x) (g y)
          <= (L * distance n x y) * (L * distance n x y)) by (apply Rmult_le_compat; assumption).
  lra.
Qed.

(** A network: operations with their bounds and numbers of outputs, the first one first. *)
Record operation := Operation { bound : R; outputs : nat; function : vector -> vector }.

Fixpoint evaluate (network : list operation) (x : vector) : vector :=
  match network with
  | [] => x
  | op :: rest => evaluate rest (function op x)
  end.

Fixpoint product (network : list operation) : R :=
  match network with
  | [] => 1
  | op :: rest => product rest * bound op
  end.

Fixpoint width (n : nat) (network : list operation) : nat :=
  match network with
  | [] => n
  | op :: rest => width (outputs op) rest
  end.

(** Every bound is one. *)
Fixpoint bounded (n : nat) (network : list operation) : Prop :=
  match network with
  | [] => True
  | op :: rest =>
      0 <= bound op /\ lipschitz n (outputs op) (bound op) (function op)
      /\ bounded (outputs op) rest
  end.

Theorem lipschitz_network : forall network n,
  bounded n network -> 0 <= product network
  /\ lipschitz n (width n network) (product network) (evaluate network).
Proof.
  induction network as [|op rest IH]; intros n; simpl.
  - intros _; split; [lra|apply lipschitz_identity].
  - intros (HB & Hop & Hrest); destruct (IH _ Hrest) as [P L]; split.
    + apply Rmult_le_pos; assumption.
    + apply (lipschitz_compose n (outputs op) _ (bound op) (product rest)); assumption.
Qed.

(** A dense layer with a bias is as steep as its matrix, see Residual.v for the norm. *)
Theorem lipschitz_affine : forall n m K A b,
  (forall x, norm m (linear n A x) <= K * norm n x) ->
  lipschitz n m K (fun x => vadd (linear n A x) b).
Proof.
  intros n m K A b H x y; unfold distance at 1.
  rewrite (norm_ext m _ (linear n A (vsub x y))); [apply H|].
  intros i _; rewrite linear_sub; unfold vsub, vadd; ring.
Qed.

(** A scale and a shift of every coordinate: the largest scale. *)
Theorem lipschitz_scaling : forall n K scale shift,
  (forall i, (i < n)%nat -> Rabs (scale i) <= K) ->
  lipschitz n n K (fun x i => scale i * x i + shift i).
Proof.
  intros n K scale shift H x y.
  destruct n as [|n]; [unfold distance, norm, square; simpl; rewrite sqrt_0; lra|].
  assert (K0 : 0 <= K) by (eapply Rle_trans; [apply Rabs_pos|apply (H O); lia]).
  unfold distance; rewrite <- (Rabs_pos_eq K K0), <- norm_scale; apply norm_le.
  intros i Hi; unfold vsub, vscale; rewrite Rabs_mult, (Rabs_pos_eq K K0).
  replace (scale i * x i + shift i - (scale i * y i + shift i)) with (scale i * (x i - y i)) by ring.
  rewrite Rabs_mult; apply Rmult_le_compat_r; [apply Rabs_pos|apply H, Hi].
Qed.
