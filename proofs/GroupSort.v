(** Sorting moves no two vectors apart: MaxMin and GroupSort of any group.

    Insertion is done by comparators at fixed places, each of which moves no two pairs apart. *)

Require Import Reals Lra Lia Psatz Arith List Permutation Sorted.
From Robustcert Require Import Sums Vectors Lipschitz Activations.
Import ListNotations.
Open Scope R_scope.

(** The smaller value stays, the larger one goes on: insertion where the list is in order. *)
Fixpoint insert (a : R) (l : list R) : list R :=
  match l with
  | [] => [a]
  | b :: rest => Rmin a b :: insert (Rmax a b) rest
  end.

Fixpoint sort (l : list R) : list R :=
  match l with
  | [] => []
  | a :: rest => insert a (sort rest)
  end.

(** ** It sorts *)

Lemma insert_permutation : forall l a, Permutation (insert a l) (a :: l).
Proof.
  induction l as [|b l IH]; intros a; simpl; [apply Permutation_refl|].
  unfold Rmin, Rmax; destruct (Rle_dec a b).
  - apply perm_skip, IH.
  - eapply perm_trans; [apply perm_skip, IH|apply perm_swap].
Qed.

Theorem sort_permutation : forall l, Permutation (sort l) l.
Proof.
  induction l as [|a l IH]; simpl; [apply perm_nil|].
  eapply perm_trans; [apply insert_permutation|apply perm_skip, IH].
Qed.

Lemma insert_sorted : forall l a, StronglySorted Rle l -> StronglySorted Rle (insert a l).
Proof.
  induction l as [|b l IH]; intros a H; simpl.
  - repeat constructor.
  - inversion H as [|b' l' Hl Hb]; subst; constructor; [apply IH, Hl|].
    apply (Permutation_Forall (x := Rmax a b :: l)).
    + apply Permutation_sym, insert_permutation.
    + constructor; [apply Rle_trans with a; [apply Rmin_l|apply Rmax_l]|].
      eapply Forall_impl; [|exact Hb]; intros c Hc.
      eapply Rle_trans; [apply Rmin_r|exact Hc].
Qed.

Theorem sort_sorted : forall l, StronglySorted Rle (sort l).
Proof. induction l as [|a l IH]; simpl; [constructor|apply insert_sorted, IH]. Qed.

(** There is one such list, so that every way to sort gives this one. *)
Theorem sorted_unique : forall l m,
  Permutation l m -> StronglySorted Rle l -> StronglySorted Rle m -> l = m.
Proof.
  induction l as [|a l IH]; intros m P Sl Sm.
  - symmetry; apply Permutation_nil, P.
  - destruct m as [|b m]; [apply Permutation_sym, Permutation_nil in P; discriminate|].
    inversion Sl as [|? ? Sl' Fl]; inversion Sm as [|? ? Sm' Fm]; subst.
    assert (a = b).
    { assert (Ha : In a (b :: m)) by (apply (Permutation_in _ P); left; reflexivity).
      assert (Hb : In b (a :: l))
        by (apply (Permutation_in _ (Permutation_sym P)); left; reflexivity).
      destruct Ha as [->|Ha]; [reflexivity|]; destruct Hb as [->|Hb]; [reflexivity|].
      rewrite Forall_forall in Fl, Fm; apply Rle_antisym; auto. }
    subst b; f_equal; apply IH; try assumption; apply (Permutation_cons_inv P).
Qed.

(** ** It moves no two lists apart *)

Fixpoint distance2 (l m : list R) : R :=
  match l, m with
  | a :: l', b :: m' => (a - b) * (a - b) + distance2 l' m'
  | _, _ => 0
  end.

Lemma comparator_nonexpansive : forall a b c d,
  (Rmin a b - Rmin c d) * (Rmin a b - Rmin c d) + (Rmax a b - Rmax c d) * (Rmax a b - Rmax c d)
  <= (a - c) * (a - c) + (b - d) * (b - d).
Proof. intros a b c d; by_cases; nra. Qed.

Lemma insert_nonexpansive : forall l m a b,
  length l = length m ->
  distance2 (insert a l) (insert b m) <= (a - b) * (a - b) + distance2 l m.
Proof.
  induction l as [|c l IH]; intros [|d m] a b H; simpl in *; try discriminate; [lra|].
  injection H as H; specialize (IH m (Rmax a c) (Rmax b d) H).
  generalize (comparator_nonexpansive a c b d); lra.
Qed.

Lemma sort_length : forall l, length (sort l) = length l.
Proof. intros; apply Permutation_length, sort_permutation. Qed.

Theorem sort_nonexpansive : forall l m,
  length l = length m -> distance2 (sort l) (sort m) <= distance2 l m.
Proof.
  induction l as [|a l IH]; intros [|b m] H; simpl in *; try discriminate; [lra|].
  injection H as H; specialize (IH m H).
  generalize (insert_nonexpansive (sort l) (sort m) a b); rewrite !sort_length; intros I.
  specialize (I H); lra.
Qed.

(** ** The activation *)

Definition values (g : nat) (z : vector) : list R := map z (seq 0 g).

(** One group in increasing order. *)
Definition sort_group (g : nat) (z : vector) : vector := fun i => nth i (sort (values g z)) 0.

Lemma values_length : forall g z, length (values g z) = g.
Proof. intros; unfold values; rewrite map_length, seq_length; reflexivity. Qed.

Lemma values_nth : forall g z i, (i < g)%nat -> nth i (values g z) 0 = z i.
Proof.
  intros g z i Hi; unfold values.
  rewrite (nth_indep _ 0 (z O)) by (rewrite map_length, seq_length; exact Hi).
  rewrite map_nth, seq_nth by exact Hi; reflexivity.
Qed.

Lemma distance2_square : forall l m,
  length l = length m ->
  square (length l) (fun i => nth i l 0 - nth i m 0) = distance2 l m.
Proof.
  induction l as [|a l IH]; intros [|b m] H; try discriminate; [reflexivity|].
  injection H as H; simpl distance2; rewrite <- (IH m H).
  change (length (a :: l)) with (1 + length l)%nat.
  unfold square; rewrite sum_split; simpl sum at 1; simpl nth at 1 2 3 4.
  rewrite Rplus_0_l; f_equal.
Qed.

Lemma sort_group_nonexpansive : forall g, lipschitz g g 1 (sort_group g).
Proof.
  intros g x y; rewrite Rmult_1_l; apply sqrt_le_1_alt.
  generalize (sort_nonexpansive (values g x) (values g y)); rewrite !values_length; intros S.
  specialize (S eq_refl).
  rewrite <- !distance2_square in S by (rewrite ?sort_length, !values_length; reflexivity).
  rewrite sort_length, values_length in S.
  eapply Rle_trans; [exact S|]; apply Req_le, square_ext; intros i Hi.
  rewrite !values_nth by exact Hi; reflexivity.
Qed.

(** "By the rearrangement inequality sorting moves no two vectors apart", for k groups of g. *)
Theorem lipschitz_group_sort : forall k g,
  lipschitz (k * g) (k * g) 1 (groupwise g g (fun _ => sort_group g)).
Proof.
  intros k g; apply lipschitz_groupwise; [lra|]; intros _ _; apply sort_group_nonexpansive.
Qed.

(** MaxMin is the smallest case: each pair as its minimum and its maximum. *)
Definition max_min (z : vector) : vector :=
  fun i => match i with O => Rmin (z 0%nat) (z 1%nat) | _ => Rmax (z 0%nat) (z 1%nat) end.

Theorem lipschitz_max_min : forall k,
  lipschitz (k * 2) (k * 2) 1 (groupwise 2 2 (fun _ => max_min)).
Proof.
  intros k; apply lipschitz_groupwise; [lra|]; intros _ _ x y.
  rewrite Rmult_1_l; apply sqrt_le_1_alt; unfold square, vsub, max_min; simpl.
  generalize (comparator_nonexpansive (x 0%nat) (x 1%nat) (y 0%nat) (y 1%nat)); lra.
Qed.

Lemma max_min_sorts : forall z i, (i < 2)%nat -> sort_group 2 z i = max_min z i.
Proof. intros z [|[|i]] H; [reflexivity|reflexivity|lia]. Qed.
