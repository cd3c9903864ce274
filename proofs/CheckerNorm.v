(** What [check_norm] proves: a bound on the norm of a matrix of integers over a denominator. *)

Require Import Reals Lra Lia Psatz ZArith List Bool Arith.
From Robustcert Require Import Sums Vectors Lipschitz Residual Checker Grid.
Import ListNotations.
Open Scope R_scope.

(** ** The residual, from a list *)

Lemma sumZ_first : forall n f, sumZ (S n) f = (f 0%nat + sumZ n (fun i => f (S i)))%Z.
Proof.
  induction n as [|n IH]; intros f; [simpl; lia|].
  change (sumZ (S (S n)) f) with (sumZ (S n) f + f (S n))%Z; rewrite IH; simpl; lia.
Qed.

Lemma sumZ_ext : forall n f g, (forall i, (i < n)%nat -> f i = g i) -> sumZ n f = sumZ n g.
Proof.
  induction n as [|n IH]; intros f g H; simpl; [reflexivity|].
  rewrite (IH f g), (H n); auto with arith.
Qed.

Lemma sumZ_plus : forall n f g, (sumZ n (fun i => f i + g i) = sumZ n f + sumZ n g)%Z.
Proof. induction n as [|n IH]; intros; simpl; [reflexivity|rewrite IH; lia]. Qed.

Lemma dot_from_comm : forall a b acc, dot_from acc a b = dot_from acc b a.
Proof.
  induction a as [|x a IH]; intros [|y b] acc; simpl; try reflexivity.
  rewrite IH; f_equal; ring.
Qed.

Lemma entry_comm : forall v w, entry v w = entry w v.
Proof.
  intros; unfold entry, Checker.dot; rewrite (dot_from_comm (fst v)), (dot_from_comm (snd v)).
  reflexivity.
Qed.

Definition none : list Z * list Z := ([], []).

Lemma beside_sum : forall v others acc,
  beside v others acc = (acc + sumZ (length others) (fun i =>
    entry v (nth i others none) * entry v (nth i others none)))%Z.
Proof.
  induction others as [|w others IH]; intros acc; [simpl; lia|].
  change (length (w :: others)) with (S (length others)); rewrite sumZ_first.
  simpl beside; rewrite IH; simpl nth; lia.
Qed.

Definition listed (t : Z) (l : list (list Z * list Z)) (i j : nat) : Z :=
  ((if Nat.eqb j i then t else 0) + entry (nth i l none) (nth j l none))%Z.

Lemma residual_square_sum : forall t l acc,
  residual_square t l acc
  = (acc + sumZ (length l) (fun i => sumZ (length l) (fun j =>
       listed t l i j * listed t l i j)))%Z.
Proof.
  induction l as [|v l IH]; intros acc; [simpl; lia|].
  change (length (v :: l)) with (S (length l)); rewrite sumZ_first.
  change (residual_square t (v :: l) acc) with (residual_square t l
    (acc + (t + entry v v) * (t + entry v v) + 2 * beside v l 0)%Z).
  rewrite IH, beside_sum, sumZ_first.
  rewrite (sumZ_ext (length l) (fun i => sumZ (S (length l)) _) (fun i =>
    (entry v (nth i l none) * entry v (nth i l none)
     + sumZ (length l) (fun j => listed t l i j * listed t l i j))%Z)).
  2: { intros i _; rewrite sumZ_first; unfold listed; simpl nth; simpl Nat.eqb.
       rewrite (entry_comm (nth i l none) v); reflexivity. }
  rewrite sumZ_plus.
  assert (E : sumZ (length l) (fun i => listed t (v :: l) 0 (S i) * listed t (v :: l) 0 (S i))%Z
    = sumZ (length l) (fun i => entry v (nth i l none) * entry v (nth i l none))%Z).
  { apply sumZ_ext; intros i _; unfold listed; reflexivity. }
  rewrite E.
  replace (listed t (v :: l) 0 0) with (t + entry v v)%Z by reflexivity; ring.
Qed.

(** ** What rounding cuts off *)

Lemma nth_coarse : forall c rows i j, (i < length rows)%nat -> (j < length (nth i rows []))%nat ->
  nth j (nth i (coarse c rows) []) 0%Z = ((nth j (nth i rows []) 0 + c / 2) / c)%Z.
Proof.
  intros c rows i j Hi Hj; unfold coarse, coarse_row.
  rewrite (map_nth_in _ _ _ rows i []) by exact Hi.
  rewrite (map_nth_in _ _ _ (nth i rows []) j 0%Z) by exact Hj; reflexivity.
Qed.

Lemma coarse_length : forall c rows, length (coarse c rows) = length rows.
Proof. intros; apply map_length. Qed.

Lemma coarse_of_length : forall c n rows,
  all_of_length n rows = true -> all_of_length n (coarse c rows) = true.
Proof.
  intros c n rows H; unfold all_of_length, coarse in *; rewrite forallb_forall in *.
  intros r Hr; apply in_map_iff in Hr; destruct Hr as (s & <- & Hs).
  unfold coarse_row; rewrite map_length; apply H, Hs.
Qed.

Lemma cut_norm : forall den c rows n, (0 < den)%Z -> all_of_length n rows = true ->
  norm_at_most (length rows) n (IZR (cut c rows) / IZR den) (fun i j =>
    mat den rows i j - IZR c / IZR den * IZR (nth j (nth i (coarse c rows) []) 0%Z)).
Proof.
  intros den c rows n Hd Hl x; assert (D := IZR_lt 0 den Hd).
  assert (P : 0 < / IZR den) by (apply Rinv_0_lt_compat, D).
  eapply Rle_trans; [apply norm_at_most_frobenius|].
  apply Rmult_le_compat_r; [apply norm_nonneg|].
  apply le_of_squares.
  { apply Rmult_le_pos; [apply IZR_le, root_up_nonneg|lra]. }
  rewrite frobenius_square.
  assert (T : sum (length rows) (fun i => IZR (nth i (map (cut_row c) rows) 0%Z))
              = IZR (total (map (cut_row c) rows))).
  { rewrite total_sum, map_length; reflexivity. }
  assert (T0 : (0 <= total (map (cut_row c) rows))%Z).
  { apply le_IZR; rewrite <- T; apply sum_nonneg; intros i Hi; apply IZR_le.
    rewrite (map_nth_in _ _ _ rows i []) by exact Hi; apply square_nonneg_Z. }
  apply Rle_trans with (/ IZR den * / IZR den * IZR (total (map (cut_row c) rows))).
  - apply Req_le; rewrite <- T, <- sum_scal; apply sum_ext; intros i Hi.
    rewrite (map_nth_in _ _ _ rows i []) by exact Hi; unfold cut_row.
    assert (L := all_of_length_nth n rows i Hl Hi).
    rewrite (square_sum _ n) by (rewrite map_length; lia).
    unfold Vectors.square; rewrite <- sum_scal; apply sum_ext; intros j Hj.
    rewrite nth_coarse by (try exact Hi; lia).
    rewrite (map_nth_in _ _ _ (nth i rows []) j 0%Z) by lia.
    unfold mat, vec; rewrite minus_IZR, mult_IZR; field; lra.
  - unfold cut; set (s := total _) in *; generalize (IZR_le _ _ (root_up_square s T0)).
    rewrite mult_IZR; intros S.
    replace (IZR (root_up s) / IZR den * (IZR (root_up s) / IZR den))
      with (/ IZR den * / IZR den * (IZR (root_up s) * IZR (root_up s))) by (field; lra).
    apply Rmult_le_compat_l; [|exact S]; apply Rmult_le_pos; lra.
Qed.

(** Fractions of integers, compared crosswise. *)
Lemma quotients_le : forall a b c d, (0 < b)%Z -> (0 < d)%Z -> (a * d <= c * b)%Z ->
  IZR a / IZR b <= IZR c / IZR d.
Proof.
  intros a b c d Hb Hd H; apply IZR_lt in Hb; apply IZR_lt in Hd; apply IZR_le in H.
  rewrite !mult_IZR in H; apply Rmult_le_reg_r with (IZR b * IZR d); [apply Rmult_lt_0_compat; lra|].
  replace (IZR a / IZR b * (IZR b * IZR d)) with (IZR a * IZR d) by (field; lra).
  replace (IZR c / IZR d * (IZR b * IZR d)) with (IZR c * IZR b) by (field; lra).
  exact H.
Qed.

Ltac split_bools := repeat match goal with
  | H : (_ && _)%bool = true |- _ => apply andb_prop in H; destruct H
  | H : (_ <=? _)%Z = true |- _ => apply Z.leb_le in H
  | H : (_ <? _)%Z = true |- _ => apply Z.ltb_lt in H
  | H : Nat.eqb _ _ = true |- _ => apply Nat.eqb_eq in H
  | H : Nat.ltb _ _ = true |- _ => apply Nat.ltb_lt in H
  end.

(** In exact integers, of the rounded matrix. *)
Lemma residual_rows : forall n rows t factor error limit,
  all_of_length n rows = true -> length factor = length rows ->
  (0 <= error)%Z -> (0 <= limit)%Z ->
  (residual_square t (combine rows factor) 0 <= error * error)%Z ->
  (t + error <= limit * limit)%Z ->
  norm_at_most (length rows) n (IZR limit) (fun i j => IZR (nth j (nth i rows []) 0%Z)).
Proof.
  intros n rows t factor error limit Hl Hf He Hm HE Ht.
  destruct (length_bound factor) as [k Hk].
  apply norm_at_most_transpose; [apply IZR_le, Hm|].
  apply (residual_integers n k (length rows) t (fun i j => nth i (nth j rows []) 0%Z)
    (fun i j => nth i (nth j factor []) 0%Z) error limit He Hm); [|exact Ht].
  eapply Z.le_trans; [apply Z.eq_le_incl|exact HE].
  rewrite residual_square_sum, combine_length, Hf, Nat.min_id, Z.add_0_l.
  apply sumZ_ext; intros j Hj; apply sumZ_ext; intros l Hl'.
  assert (E : residualZ n k t (fun i j => nth i (nth j rows []) 0%Z)
                (fun i j => nth i (nth j factor []) 0%Z) j l = listed t (combine rows factor) j l).
  { unfold residualZ, listed, entry, none; rewrite !combine_nth by (symmetry; exact Hf).
    unfold fst, snd; rewrite (dot_sumZ (nth j rows []) _ n), (dot_sumZ (nth j factor []) _ k).
    - destruct (Nat.eqb l j); lia.
    - apply Hk.
    - rewrite (all_of_length_nth n rows j Hl Hj); lia. }
  rewrite E; reflexivity.
Qed.

Theorem check_norm_sound : forall n den rows b bd w,
  (0 < den)%Z -> (0 < bd)%Z -> all_of_length n rows = true ->
  check_norm den rows b bd w = true ->
  norm_at_most (length rows) n (IZR b / IZR bd) (mat den rows).
Proof.
  intros n den rows b bd w Hd Hb Hl H; unfold check_norm in H; split_bools.
  assert (D := IZR_lt 0 den Hd).
  assert (R := residual_rows n (coarse (divisor w) rows) (t w) (factor w) (error w) (limit w)
    (coarse_of_length _ _ _ Hl)).
  rewrite coarse_length in R; specialize (R ltac:(assumption) ltac:(assumption) ltac:(assumption)
    ltac:(assumption) ltac:(assumption)).
  assert (S0 : 0 <= IZR (divisor w) / IZR den).
  { apply Rmult_le_pos; [apply IZR_le; assumption|]; apply Rlt_le, Rinv_0_lt_compat, D. }
  apply (norm_at_most_scale _ _ _ _ _ S0) in R.
  assert (Q := norm_at_most_plus _ _ _ _ (mat den rows) _ R (cut_norm den (divisor w) rows n Hd Hl)).
  intros x; eapply Rle_trans; [apply Q|]; apply Rmult_le_compat_r; [apply norm_nonneg|].
  eapply Rle_trans; [apply Req_le|apply (quotients_le (divisor w * limit w + cut (divisor w) rows) den);
    assumption].
  rewrite plus_IZR, mult_IZR; field; lra.
Qed.
