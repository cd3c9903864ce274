(** Lists of integers as vectors of a grid, and what the checker's sums over them are. *)

Require Import Reals Lra Lia Psatz ZArith List Arith.
From Robustcert Require Import Sums Vectors Lipschitz Residual Checker.
Import ListNotations.
Open Scope R_scope.

(** The integers of a list over d. *)
Definition vec (d : Z) (l : list Z) : vector := fun i => IZR (nth i l 0%Z) / IZR d.
Definition mat (d : Z) (rows : list (list Z)) : matrix := fun i => vec d (nth i rows []).

Lemma vec_out : forall d l i, (length l <= i)%nat -> vec d l i = 0.
Proof. intros d l i H; unfold vec; rewrite nth_overflow by exact H; unfold Rdiv; ring. Qed.

(** ** Sums *)

Lemma sum_first : forall n f, sum (S n) f = f 0%nat + sum n (fun i => f (S i)).
Proof.
  intros n f; change (S n) with (1 + n)%nat; rewrite sum_split; simpl sum at 1; simpl; ring.
Qed.

Lemma dot_from_sum : forall a b acc n, (length a <= n)%nat ->
  IZR (dot_from acc a b) = IZR acc + sum n (fun i => IZR (nth i a 0%Z) * IZR (nth i b 0%Z)).
Proof.
  induction a as [|x a IH]; intros b acc n H.
  - simpl dot_from; rewrite (sum_ext n _ (fun _ => 0)), sum_zero; [ring|].
    intros [|i] _; simpl; ring.
  - destruct b as [|y b].
    + simpl dot_from; rewrite (sum_ext n _ (fun _ => 0)), sum_zero; [ring|].
      intros [|i] _; simpl; ring.
    + destruct n as [|n]; simpl in H; [lia|]; rewrite sum_first; simpl dot_from.
      rewrite (IH b _ n) by lia; rewrite plus_IZR, mult_IZR; simpl; ring.
Qed.

Lemma dot_sum : forall a b n, (length a <= n)%nat ->
  IZR (Checker.dot a b) = sum n (fun i => IZR (nth i a 0%Z) * IZR (nth i b 0%Z)).
Proof. intros; unfold Checker.dot; rewrite (dot_from_sum a b 0 n) by assumption; ring. Qed.

Lemma dot_sumZ : forall a b n, (length a <= n)%nat ->
  Checker.dot a b = sumZ n (fun i => (nth i a 0 * nth i b 0)%Z).
Proof.
  intros a b n H; apply eq_IZR; rewrite (dot_sum a b n H), sumZ_IZR.
  apply sum_ext; intros; rewrite mult_IZR; reflexivity.
Qed.

Lemma square_sum : forall a n, (length a <= n)%nat ->
  IZR (Checker.square a) = Vectors.square n (fun i => IZR (nth i a 0%Z)).
Proof. intros; apply dot_sum; assumption. Qed.

Lemma square_nonneg_Z : forall a, (0 <= Checker.square a)%Z.
Proof.
  intros a; apply le_IZR; rewrite (square_sum a (length a)) by lia; apply square_nonneg.
Qed.

Lemma total_sum : forall l, IZR (total l) = sum (length l) (fun i => IZR (nth i l 0%Z)).
Proof.
  intros l; unfold total.
  assert (H : forall l acc,
    IZR (fold_left Z.add l acc) = IZR acc + sum (length l) (fun i => IZR (nth i l 0%Z))).
  { induction l0 as [|x l0 IH]; intros acc; [simpl; ring|].
    change (length (x :: l0)) with (S (length l0)); rewrite sum_first; simpl fold_left.
    rewrite IH, plus_IZR; simpl; ring. }
  rewrite H; ring.
Qed.

(** ** Roots and quotients, rounded up *)

Lemma root_up_square : forall a, (0 <= a)%Z -> (a <= root_up a * root_up a)%Z.
Proof.
  intros a H; unfold root_up; destruct (Z.eq_dec a 0) as [->|N]; [reflexivity|].
  apply (Z.sqrt_up_spec a); lia.
Qed.

Lemma root_up_nonneg : forall a, (0 <= root_up a)%Z.
Proof. intros; apply Z.sqrt_up_nonneg. Qed.

Lemma root_up_sqrt : forall a, (0 <= a)%Z -> sqrt (IZR a) <= IZR (root_up a).
Proof.
  intros a H; apply le_of_squares; [apply IZR_le, root_up_nonneg|].
  rewrite sqrt_sqrt by (apply IZR_le, H); rewrite <- mult_IZR; apply IZR_le, root_up_square, H.
Qed.

Lemma floor_bounds : forall a b, (0 < b)%Z ->
  IZR a / IZR b - 1 <= IZR (a / b) <= IZR a / IZR b.
Proof.
  intros a b H; assert (Hb := IZR_lt 0 b H).
  generalize (Z.mul_div_le a b H) (Z.mul_succ_div_gt a b H); intros L U.
  apply IZR_le in L; apply IZR_lt in U; rewrite mult_IZR in L, U; rewrite succ_IZR in U.
  set (q := IZR (a / b)) in *.
  split.
  - apply Rmult_le_reg_r with (IZR b); [exact Hb|].
    replace ((IZR a / IZR b - 1) * IZR b) with (IZR a - IZR b) by (field; lra); lra.
  - apply Rmult_le_reg_r with (IZR b); [exact Hb|].
    replace (IZR a / IZR b * IZR b) with (IZR a) by (field; lra); lra.
Qed.

Lemma over_above : forall a b, (0 < b)%Z -> IZR a / IZR b <= IZR (over a b).
Proof.
  intros a b H; generalize (floor_bounds a b H); unfold over; rewrite plus_IZR; lra.
Qed.

(** A quotient whose floor is taken, over d: within 1 / d. *)
Lemma floor_on_grid : forall a b d, (0 < b)%Z -> (0 < d)%Z ->
  Rabs (IZR a / IZR b / IZR d - IZR (a / b) / IZR d) <= 1 / IZR d.
Proof.
  intros a b d Hb Hd; generalize (floor_bounds a b Hb) (IZR_lt 0 d Hd); intros B D.
  replace (_ - _) with ((IZR a / IZR b - IZR (a / b)) * / IZR d) by (field; split; [lra|
    apply IZR_lt in Hb; lra]).
  assert (P : 0 < / IZR d) by (apply Rinv_0_lt_compat, D).
  rewrite Rabs_mult, (Rabs_pos_eq (/ IZR d)) by lra.
  apply Rmult_le_compat_r; [lra|]; rewrite Rabs_pos_eq; lra.
Qed.

(** ** Distances *)

Lemma distance_entries : forall n u v c,
  0 <= c -> (forall i, (i < n)%nat -> Rabs (u i - v i) <= c) ->
  distance n u v <= IZR (root_up (Z.of_nat n)) * c.
Proof.
  intros n u v c Hc H; eapply Rle_trans.
  - apply (norm_le n _ (fun _ => c)); intros i Hi; rewrite (Rabs_pos_eq c Hc); apply H, Hi.
  - rewrite norm_constant by exact Hc; apply Rmult_le_compat_r; [exact Hc|].
    rewrite INR_IZR_INZ; apply root_up_sqrt; lia.
Qed.

Lemma distance_equal : forall n u v, (forall i, (i < n)%nat -> u i = v i) -> distance n u v = 0.
Proof.
  intros n u v H; unfold distance; rewrite (norm_ext n _ (fun _ => 0)); [apply norm_zero|].
  intros i Hi; unfold vsub; rewrite H by exact Hi; ring.
Qed.

Lemma norm_vec : forall d l, (0 < d)%Z ->
  norm (length l) (vec d l) <= IZR (root_up (Checker.square l)) / IZR d.
Proof.
  intros d l Hd; assert (D := IZR_lt 0 d Hd); assert (P : 0 < / IZR d) by (apply Rinv_0_lt_compat, D).
  rewrite (norm_ext _ _ (vscale (/ IZR d) (fun i => IZR (nth i l 0%Z))))
    by (intros; unfold vec, vscale, Rdiv; ring).
  rewrite norm_scale, (Rabs_pos_eq (/ IZR d)) by lra; unfold Rdiv; rewrite Rmult_comm.
  apply Rmult_le_compat_r; [lra|]; unfold norm.
  rewrite <- square_sum by lia; apply root_up_sqrt, square_nonneg_Z.
Qed.

(** ** Entries of lists *)

Lemma map2_length : forall f a b, length a = length b -> length (map2 f a b) = length a.
Proof.
  induction a as [|x a IH]; intros [|y b] H; simpl in *; try discriminate; [reflexivity|].
  rewrite IH by lia; reflexivity.
Qed.

Lemma map2_nth : forall f a b i, length a = length b -> (i < length a)%nat ->
  nth i (map2 f a b) 0%Z = f (nth i a 0%Z) (nth i b 0%Z).
Proof.
  induction a as [|x a IH]; intros [|y b] [|i] H Hi; simpl in *; try lia; auto.
  apply IH; lia.
Qed.

Lemma map_nth_in : forall A B (f : A -> B) l i a b, (i < length l)%nat ->
  nth i (map f l) b = f (nth i l a).
Proof.
  intros A B f l i a b H; rewrite (nth_indep _ b (f a)) by (rewrite map_length; exact H).
  apply map_nth.
Qed.

Lemma all_of_length_nth : forall n rows i, all_of_length n rows = true -> (i < length rows)%nat ->
  length (nth i rows []) = n.
Proof.
  intros n rows i H Hi; unfold all_of_length in H; rewrite forallb_forall in H.
  apply Nat.eqb_eq, H, nth_In, Hi.
Qed.

(** Some number is not below the lengths of all rows. *)
Lemma length_bound : forall rows : list (list Z), exists k, forall i, (length (nth i rows []) <= k)%nat.
Proof.
  induction rows as [|r rows [k H]].
  - exists O; intros [|i]; simpl; lia.
  - exists (max (length r) k); intros [|i]; simpl; [lia|]; specialize (H i); lia.
Qed.
