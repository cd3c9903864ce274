(** Finite sums of reals, [sum n f = f 0 + ... + f (n - 1)]. *)

Require Import Reals Lra Lia Arith.
Open Scope R_scope.

Fixpoint sum (n : nat) (f : nat -> R) : R :=
  match n with
  | O => 0
  | S k => sum k f + f k
  end.

Lemma sum_ext : forall n f g, (forall i, (i < n)%nat -> f i = g i) -> sum n f = sum n g.
Proof.
  induction n as [|n IH]; intros f g H; simpl; [reflexivity|].
  rewrite (IH f g), (H n); auto with arith.
Qed.

Lemma sum_zero : forall n, sum n (fun _ => 0) = 0.
Proof. induction n as [|n IH]; simpl; [|rewrite IH]; ring. Qed.

Lemma sum_const : forall n c, sum n (fun _ => c) = INR n * c.
Proof.
  induction n as [|n IH]; intros c; [simpl; ring|].
  rewrite S_INR; simpl; rewrite IH; ring.
Qed.

Lemma sum_plus : forall n f g, sum n (fun i => f i + g i) = sum n f + sum n g.
Proof. induction n as [|n IH]; intros; simpl; [|rewrite IH]; ring. Qed.

Lemma sum_minus : forall n f g, sum n (fun i => f i - g i) = sum n f - sum n g.
Proof. induction n as [|n IH]; intros; simpl; [|rewrite IH]; ring. Qed.

Lemma sum_scal : forall n c f, sum n (fun i => c * f i) = c * sum n f.
Proof. induction n as [|n IH]; intros; simpl; [|rewrite IH]; ring. Qed.

Lemma sum_scal_r : forall n c f, sum n (fun i => f i * c) = sum n f * c.
Proof. induction n as [|n IH]; intros; simpl; [|rewrite IH]; ring. Qed.

Lemma sum_le : forall n f g, (forall i, (i < n)%nat -> f i <= g i) -> sum n f <= sum n g.
Proof.
  induction n as [|n IH]; intros f g H; simpl; [lra|].
  specialize (IH f g); specialize (H n) as Hn.
  assert (sum n f <= sum n g) by (apply IH; auto with arith).
  specialize (Hn (Nat.lt_succ_diag_r n)); lra.
Qed.

Lemma sum_nonneg : forall n f, (forall i, (i < n)%nat -> 0 <= f i) -> 0 <= sum n f.
Proof. intros n f H; rewrite <- (sum_zero n); apply sum_le; exact H. Qed.

Lemma sum_swap : forall n m f,
  sum n (fun i => sum m (fun j => f i j)) = sum m (fun j => sum n (fun i => f i j)).
Proof.
  induction n as [|n IH]; intros m f; simpl.
  - rewrite sum_zero; reflexivity.
  - rewrite IH, <- sum_plus; reflexivity.
Qed.

(** The first [n] terms and the [m] terms after them. *)
Lemma sum_split : forall n m f, sum (n + m) f = sum n f + sum m (fun i => f (n + i)%nat).
Proof.
  intros n m f; induction m as [|m IH]; simpl.
  - rewrite Nat.add_0_r; ring.
  - rewrite Nat.add_succ_r; simpl; rewrite IH; ring.
Qed.

(** Terms in [n] groups of [g] neighbours. *)
Lemma sum_groups : forall n g f,
  sum (n * g) f = sum n (fun k => sum g (fun i => f (k * g + i)%nat)).
Proof.
  induction n as [|n IH]; intros g f; simpl; [reflexivity|].
  rewrite Nat.add_comm, sum_split, IH; reflexivity.
Qed.

Lemma sum_abs : forall n f, Rabs (sum n f) <= sum n (fun i => Rabs (f i)).
Proof.
  induction n as [|n IH]; intros f; simpl; [rewrite Rabs_R0; lra|].
  eapply Rle_trans; [apply Rabs_triang|]; specialize (IH f); lra.
Qed.

(** One term of a sum of numbers that are not negative. *)
Lemma sum_term : forall n f i,
  (i < n)%nat -> (forall k, (k < n)%nat -> 0 <= f k) -> f i <= sum n f.
Proof.
  induction n as [|n IH]; intros f i Hi H; [lia|]; simpl.
  destruct (Nat.eq_dec i n) as [->|Hne].
  - assert (0 <= sum n f) by (apply sum_nonneg; auto with arith); lra.
  - assert (f i <= sum n f) by (apply IH; [lia|auto with arith]).
    specialize (H n (Nat.lt_succ_diag_r n)); lra.
Qed.

(** Two different terms of such a sum. *)
Lemma sum_two_terms : forall n f i j,
  (i < n)%nat -> (j < n)%nat -> i <> j -> (forall k, (k < n)%nat -> 0 <= f k) ->
  f i + f j <= sum n f.
Proof.
  induction n as [|n IH]; intros f i j Hi Hj Hij H; [lia|]; simpl.
  assert (H' : forall k, (k < n)%nat -> 0 <= f k) by auto with arith.
  specialize (H n (Nat.lt_succ_diag_r n)) as Hn.
  destruct (Nat.eq_dec i n) as [->|Hi'].
  - assert (f j <= sum n f) by (apply sum_term; [lia|exact H']); lra.
  - destruct (Nat.eq_dec j n) as [->|Hj'].
    + assert (f i <= sum n f) by (apply sum_term; [lia|exact H']); lra.
    + assert (f i + f j <= sum n f) by (apply IH; try lia; exact H'); lra.
Qed.

(** A sum in which all terms but one are 0. *)
Lemma sum_single : forall n i c,
  (i < n)%nat -> sum n (fun j => if Nat.eqb j i then c j else 0) = c i.
Proof.
  induction n as [|n IH]; intros i c Hi; [lia|]; simpl.
  destruct (Nat.eq_dec i n) as [->|Hne].
  - rewrite Nat.eqb_refl, (sum_ext _ _ (fun _ => 0)), sum_zero; [ring|].
    intros j Hj; destruct (Nat.eqb_spec j n); [lia|reflexivity].
  - rewrite IH by lia; destruct (Nat.eqb_spec n i); [lia|ring].
Qed.
