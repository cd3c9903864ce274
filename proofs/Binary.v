(** IEEE binary32 and binary64, to nearest with ties to even, obey the model of Rounding.v: u =
    2^-24 and eta = 2^-150; u = 2^-53 and eta = 2^-1075. Flocq's definitions. *)

Require Import Reals ZArith Lra Lia Psatz Bool List Permutation.
From Flocq Require Import Core Relative Plus_error IEEE754.BinarySingleNaN.
From Robustcert Require Import Sums Vectors Lipschitz Residual Rounding DenseRounding.
Import ListNotations.
Open Scope R_scope.

Section Format.

Variables prec emax : Z.
Context (prec_gt_0 : Prec_gt_0 prec) (prec_lt_emax : Prec_lt_emax prec emax).

Let emin := (3 - emax - prec)%Z.

(** Rounding to the format without its upper end. *)
Definition nearest (z : R) : R := round radix2 (FLT_exp emin prec) ZnearestE z.

Definition unit_roundoff : R := bpow radix2 (- prec).
Definition underflow : R := bpow radix2 (emin - 1).

Lemma nearest_rounds : rounds nearest unit_roundoff underflow.
Proof.
  unfold rounds, unit_roundoff, underflow; repeat split; try apply bpow_ge_0; intros z.
  assert (U : / 2 * bpow radix2 (- prec + 1) = bpow radix2 (- prec)).
  { rewrite bpow_plus; simpl; lra. }
  assert (E : / 2 * bpow radix2 emin = bpow radix2 (emin - 1)).
  { replace emin with (emin - 1 + 1)%Z at 1 by ring; rewrite bpow_plus; simpl; lra. }
  destruct (Rle_or_lt (bpow radix2 (emin + prec - 1)) (Rabs z)) as [H|H].
  - generalize (relative_error_N_FLT radix2 emin prec prec_gt_0 (fun x => negb (Z.even x)) z H).
    rewrite U; unfold nearest; generalize (bpow_ge_0 radix2 (emin - 1)); lra.
  - assert (S : Rabs (nearest z - z) <= / 2 * bpow radix2 emin).
    { refine (Rle_trans _ _ _ (error_le_half_ulp _ _ _ _) _).
      rewrite ulp_FLT_small; [lra|exact prec_gt_0|].
      apply (Rlt_le_trans _ _ _ H), bpow_le; lia. }
    rewrite E in S; generalize (bpow_ge_0 radix2 (- prec)) (Rabs_pos z); intros; nra.
Qed.

(** Sums of numbers of the format lose nothing to underflow. *)
Lemma nearest_sums_round :
  sums_round (generic_format radix2 (FLT_exp emin prec)) nearest unit_roundoff.
Proof.
  split; [apply bpow_ge_0|]; intros a b Fa Fb; split.
  - apply generic_format_round; [apply FLT_exp_valid, prec_gt_0|apply valid_rnd_N].
  - destruct (FLT_plus_error_N_ex radix2 emin prec (fun x => negb (Z.even x)) a b Fa Fb)
      as (d & Bd & Hd).
    unfold nearest; rewrite Hd.
    replace ((a + b) * (1 + d) - (a + b)) with (d * (a + b)) by ring.
    rewrite Rabs_mult; apply Rmult_le_compat_r; [apply Rabs_pos|].
    eapply Rle_trans; [exact Bd|].
    assert (U : u_ro radix2 prec = unit_roundoff).
    { unfold u_ro, unit_roundoff; rewrite bpow_plus; simpl; lra. }
    rewrite U; assert (P : 0 <= unit_roundoff) by apply bpow_ge_0.
    apply Rmult_le_reg_r with (1 + unit_roundoff); [lra|].
    unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra; nra.
Qed.

(** Ways to evaluate a sum of products of floats by IEEE operations. *)
Notation float := (binary_float prec emax).

Inductive float_tree :=
  | FNumber (a : float)
  | FTimes (a b : float)
  | FPlus (s t : float_tree)
  | FFused (a b : float) (t : float_tree).

Fixpoint run (t : float_tree) : float :=
  match t with
  | FNumber a => a
  | FTimes a b => Bmult mode_NE a b
  | FPlus s t => Bplus mode_NE (run s) (run t)
  | FFused a b t => Bfma mode_NE a b (run t)
  end.

(** The same sum of real numbers. *)
Fixpoint reals (t : float_tree) : tree :=
  match t with
  | FNumber a => Number (B2R a)
  | FTimes a b => Times (B2R a) (B2R b)
  | FPlus s t => Plus (reals s) (reals t)
  | FFused a b t => Fused (B2R a) (B2R b) (reals t)
  end.

Lemma plus_finite : forall x y : float,
  is_finite (Bplus mode_NE x y) = true -> is_finite x = true /\ is_finite y = true.
Proof.
  intros [sx|sx| |sx mx ex Hx] [sy|sy| |sy my ey Hy]; simpl; try (now auto);
    try discriminate; destruct (Bool.eqb sx sy); simpl; now auto.
Qed.

Lemma fused_finite : forall x y z : float, is_finite (Bfma mode_NE x y z) = true ->
  is_finite x = true /\ is_finite y = true /\ is_finite z = true.
Proof.
  intros [sx|sx| |sx mx ex Hx] [sy|sy| |sy my ey Hy] [sz|sz| |sz mz ez Hz]; simpl; try (now auto);
    try discriminate; try (destruct (Bool.eqb _ _)); simpl; now auto.
Qed.

Lemma overflow_infinite : forall (x : float) s, B2SF x = binary_overflow prec emax mode_NE s ->
  is_finite x = false.
Proof. intros x s H; rewrite <- is_finite_SF_B2SF, H; reflexivity. Qed.

(** If the result is finite, then every operation was, and rounded once. *)
Theorem run_computed : forall t,
  is_finite (run t) = true -> B2R (run t) = computed nearest (reals t).
Proof.
  induction t as [a|a b|s IHs t IHt|a b t IHt]; simpl; intros H.
  - reflexivity.
  - generalize (Bmult_correct prec emax _ _ mode_NE a b).
    destruct (Rlt_bool _ _); intros C; [apply C|].
    apply overflow_infinite in C; congruence.
  - destruct (plus_finite _ _ H) as [Hs Ht].
    generalize (Bplus_correct prec emax _ _ mode_NE (run s) (run t) Hs Ht).
    destruct (Rlt_bool _ _); intros C.
    + rewrite <- IHs, <- IHt by assumption; apply C.
    + destruct C as [C _]; apply overflow_infinite in C; congruence.
  - destruct (fused_finite _ _ _ H) as (Ha & Hb & Ht).
    generalize (Bfma_correct prec emax _ _ mode_NE a b (run t) Ha Hb Ht); simpl.
    destruct (Rlt_bool _ _); intros C.
    + rewrite <- IHt by assumption; apply C.
    + apply overflow_infinite in C; congruence.
Qed.

End Format.

Arguments run {prec emax prec_gt_0 prec_lt_emax} t.
Arguments reals {prec emax} t.

Global Instance gt_0_32 : Prec_gt_0 24 := eq_refl.
Global Instance lt_emax_32 : Prec_lt_emax 24 128 := eq_refl.
Global Instance gt_0_64 : Prec_gt_0 53 := eq_refl.
Global Instance lt_emax_64 : Prec_lt_emax 53 1024 := eq_refl.

Definition float32 := binary_float 24 128.
Definition float64 := binary_float 53 1024.

Theorem rounds_binary32 : rounds (nearest 24 128) (bpow radix2 (-24)) (bpow radix2 (-150)).
Proof. exact (nearest_rounds 24 128 gt_0_32). Qed.

Theorem rounds_binary64 : rounds (nearest 53 1024) (bpow radix2 (-53)) (bpow radix2 (-1075)).
Proof. exact (nearest_rounds 53 1024 gt_0_64). Qed.

Theorem sums_round_binary32 :
  sums_round (generic_format radix2 (FLT_exp (-149) 24)) (nearest 24 128) (bpow radix2 (-24)).
Proof. exact (nearest_sums_round 24 128 gt_0_32). Qed.

Theorem sums_round_binary64 :
  sums_round (generic_format radix2 (FLT_exp (-1074) 53)) (nearest 53 1024) (bpow radix2 (-53)).
Proof. exact (nearest_sums_round 53 1024 gt_0_64). Qed.

(** A dense layer in IEEE arithmetic, whatever the order and the fusing of each of its sums, if no
    output overflowed. N bounds the norm of |W|, tiny is the smallest normal number. *)
Section Dense.

Variables prec emax : Z.
Context (prec_gt_0 : Prec_gt_0 prec) (prec_lt_emax : Prec_lt_emax prec emax).

Lemma dense_binary : forall m n (W : nat -> nat -> binary_float prec emax) (z : nat -> binary_float prec emax)
    (bias : nat -> list R) (t : nat -> float_tree prec emax) N,
  (2 <= prec)%Z -> (2 * Z.of_nat (n + 1) <= 2 ^ prec)%Z ->
  (forall i, (i < m)%nat -> (length (bias i) <= 1)%nat
     /\ evaluates n (fun j => B2R (W i j)) (fun j => B2R (z j)) (bias i) (reals (t i))
     /\ is_finite (run (t i)) = true) ->
  let w := fun i j => B2R (W i j) in
  let x := fun j => B2R (z j) in
  let b := fun i => total (bias i) in
  let u := bpow radix2 (- prec) in
  let tiny := bpow radix2 (2 - emax) in
  norm_at_most m n N (absolute w) ->
  distance m (fun i => B2R (run (t i))) (vadd (linear n w x) b)
  <= gamma (n + 1) u * N * norm n x
     + (gamma (n + 1) u * norm m b + 2 * INR (n + 1) * tiny * sqrt (INR m)).
Proof.
  intros m n W z bias t N Hp Hn HT w x b u tiny HN.
  unfold distance.
  rewrite (norm_ext m _ (vsub (fun i => computed (nearest prec emax) (reals (t i)))
                              (vadd (linear n w x) b))).
  - apply (dense_forward_error_tiny (nearest prec emax) u (underflow prec emax));
      try exact HN; try apply bpow_ge_0.
    + apply (nearest_rounds prec emax prec_gt_0).
    + unfold u; apply Rmult_le_reg_r with (bpow radix2 prec); [apply bpow_gt_0|].
      rewrite Rmult_assoc, <- bpow_plus; replace (- prec + prec)%Z with 0%Z by ring.
      rewrite INR_IZR_INZ; apply IZR_le in Hn; rewrite mult_IZR in Hn.
      change 2%Z with (radix_val radix2) in Hn at 2.
      rewrite IZR_Zpower in Hn by lia; simpl; lra.
    + unfold underflow, tiny, u; rewrite <- bpow_plus; apply bpow_le; lia.
    + unfold u; apply Rle_trans with (bpow radix2 (-1)); [apply bpow_le; lia|simpl; lra].
    + intros i Hi; destruct (HT i Hi) as (L & E & _); split; assumption.
  - intros i Hi; destruct (HT i Hi) as (_ & _ & F); unfold vsub.
    rewrite (run_computed prec emax _ _ (t i) F); reflexivity.
Qed.

End Dense.

Theorem dense_binary32 : forall m n (W : nat -> nat -> float32) (z : nat -> float32) bias
    (t : nat -> float_tree 24 128) N,
  (Z.of_nat (n + 1) <= 2 ^ 23)%Z ->
  (forall i, (i < m)%nat -> (length (bias i) <= 1)%nat
     /\ evaluates n (fun j => B2R (W i j)) (fun j => B2R (z j)) (bias i) (reals (t i))
     /\ is_finite (run (t i)) = true) ->
  let w := fun i j => B2R (W i j) in
  let x := fun j => B2R (z j) in
  let b := fun i => total (bias i) in
  norm_at_most m n N (absolute w) ->
  distance m (fun i => B2R (run (t i))) (vadd (linear n w x) b)
  <= gamma (n + 1) (bpow radix2 (-24)) * N * norm n x
     + (gamma (n + 1) (bpow radix2 (-24)) * norm m b
        + 2 * INR (n + 1) * bpow radix2 (-126) * sqrt (INR m)).
Proof.
  intros m n W z bias t N Hn HT w x b HN.
  apply (dense_binary 24 128 gt_0_32 lt_emax_32 m n W z bias t N); try assumption; lia.
Qed.

Theorem dense_binary64 : forall m n (W : nat -> nat -> float64) (z : nat -> float64) bias
    (t : nat -> float_tree 53 1024) N,
  (Z.of_nat (n + 1) <= 2 ^ 52)%Z ->
  (forall i, (i < m)%nat -> (length (bias i) <= 1)%nat
     /\ evaluates n (fun j => B2R (W i j)) (fun j => B2R (z j)) (bias i) (reals (t i))
     /\ is_finite (run (t i)) = true) ->
  let w := fun i j => B2R (W i j) in
  let x := fun j => B2R (z j) in
  let b := fun i => total (bias i) in
  norm_at_most m n N (absolute w) ->
  distance m (fun i => B2R (run (t i))) (vadd (linear n w x) b)
  <= gamma (n + 1) (bpow radix2 (-53)) * N * norm n x
     + (gamma (n + 1) (bpow radix2 (-53)) * norm m b
        + 2 * INR (n + 1) * bpow radix2 (-1022) * sqrt (INR m)).
Proof.
  intros m n W z bias t N Hn HT w x b HN.
  apply (dense_binary 53 1024 gt_0_64 lt_emax_64 m n W z bias t N); try assumption; lia.
Qed.
