(** Rounding of sums of products in any order: docs/soundness.md, sections 3 and 4;
    robustcert/network/local_error.py, [gamma].

    The model: one operation rounds its exact result z to rnd z, with
    |rnd z - z| <= u |z| + eta. Numbers do not overflow; see the README. *)

Require Import Reals Lra Lia Psatz Arith List Permutation.
From Robustcert Require Import Sums Vectors.
Import ListNotations.
Open Scope R_scope.

(** A way to evaluate a sum of products: every order, every shape of the tree, fused or not. An
    accumulator that starts at 0 is left out: adding to it is exact. *)
Inductive tree :=
  | Number (a : R)                 (* a bias, as it is stored *)
  | Times (a b : R)                (* a product, rounded *)
  | Plus (s t : tree)              (* a sum, rounded *)
  | Fused (a b : R) (t : tree).    (* a b + t, rounded once *)

Fixpoint exact (t : tree) : R :=
  match t with
  | Number a => a
  | Times a b => a * b
  | Plus s t => exact s + exact t
  | Fused a b t => a * b + exact t
  end.

(** Sum of the terms' absolute values. *)
Fixpoint magnitude (t : tree) : R :=
  match t with
  | Number a => Rabs a
  | Times a b => Rabs a * Rabs b
  | Plus s t => magnitude s + magnitude t
  | Fused a b t => Rabs a * Rabs b + magnitude t
  end.

(** Number of roundings that a term goes through, at most. *)
Fixpoint roundings (t : tree) : nat :=
  match t with
  | Number _ => 0
  | Times _ _ => 1
  | Plus s t => S (max (roundings s) (roundings t))
  | Fused _ _ t => S (roundings t)
  end.

Fixpoint operations (t : tree) : nat :=
  match t with
  | Number _ => 0
  | Times _ _ => 1
  | Plus s t => S (operations s + operations t)
  | Fused _ _ t => S (operations t)
  end.

(** Pairs that are multiplied, and numbers that are added as they are. *)
Fixpoint products (t : tree) : list (R * R) :=
  match t with
  | Number _ => []
  | Times a b => [(a, b)]
  | Plus s t => products s ++ products t
  | Fused a b t => (a, b) :: products t
  end.

Fixpoint numbers (t : tree) : list R :=
  match t with
  | Number a => [a]
  | Times _ _ => []
  | Plus s t => numbers s ++ numbers t
  | Fused _ _ t => numbers t
  end.

Definition terms (t : tree) : nat := (length (products t) + length (numbers t))%nat.

Definition total (l : list R) : R := fold_right Rplus 0 l.

Lemma total_app : forall l m, total (l ++ m) = total l + total m.
Proof. induction l as [|a l IH]; intros m; simpl; [ring|rewrite IH; ring]. Qed.

Lemma total_permutation : forall l m, Permutation l m -> total l = total m.
Proof. induction 1; simpl; lra. Qed.

Lemma exact_terms : forall t,
  exact t = total (map (fun p => fst p * snd p) (products t)) + total (numbers t).
Proof.
  induction t as [a|a b|s IHs t IHt|a b t IHt]; simpl; try (rewrite IHt); try lra.
  rewrite map_app, !total_app, IHs; lra.
Qed.

Lemma magnitude_terms : forall t,
  magnitude t = total (map (fun p => Rabs (fst p) * Rabs (snd p)) (products t))
                + total (map Rabs (numbers t)).
Proof.
  induction t as [a|a b|s IHs t IHt|a b t IHt]; simpl; try (rewrite IHt); try lra.
  rewrite !map_app, !total_app, IHs; lra.
Qed.

Lemma terms_positive : forall t, (1 <= terms t)%nat.
Proof.
  unfold terms; induction t; simpl; rewrite ?app_length; lia.
Qed.

(** k terms go through k roundings at most, in 2 k - 1 operations less one for every number. *)
Lemma roundings_terms : forall t, (roundings t <= terms t)%nat.
Proof.
  induction t as [a|a b|s IHs t IHt|a b t IHt]; unfold terms in *; simpl; try lia.
  rewrite !app_length; generalize (terms_positive s) (terms_positive t); unfold terms; lia.
Qed.

Lemma operations_terms : forall t, (S (operations t) <= length (products t) + terms t)%nat.
Proof.
  induction t as [a|a b|s IHs t IHt|a b t IHt]; unfold terms in *; simpl; try lia.
  rewrite !app_length; lia.
Qed.

Lemma exact_magnitude : forall t, Rabs (exact t) <= magnitude t.
Proof.
  induction t as [a|a b|s IHs t IHt|a b t IHt]; simpl.
  - lra.
  - rewrite Rabs_mult; lra.
  - eapply Rle_trans; [apply Rabs_triang|lra].
  - eapply Rle_trans; [apply Rabs_triang|rewrite Rabs_mult; lra].
Qed.

Lemma magnitude_nonneg : forall t, 0 <= magnitude t.
Proof. intros; eapply Rle_trans; [apply Rabs_pos|apply exact_magnitude]. Qed.

(** ** The error *)

Section Model.

Variables (rnd : R -> R) (u eta : R).

Definition rounds : Prop := 0 <= u /\ 0 <= eta /\ forall z, Rabs (rnd z - z) <= u * Rabs z + eta.

Fixpoint computed (t : tree) : R :=
  match t with
  | Number a => a
  | Times a b => rnd (a * b)
  | Plus s t => rnd (computed s + computed t)
  | Fused a b t => rnd (a * b + computed t)
  end.

Hypothesis model : rounds.

Lemma power_ge_1 : forall k, 1 <= (1 + u) ^ k.
Proof. intros k; destruct model; apply pow_R1_Rle; lra. Qed.

Lemma power_le : forall j k, (j <= k)%nat -> (1 + u) ^ j <= (1 + u) ^ k.
Proof. intros j k H; destruct model; apply Rle_pow; [lra|exact H]. Qed.

(** One more rounding, of a result z that is off by [off] already. *)
Lemma one_rounding : forall z Z M P off lost,
  Rabs (z - Z) <= off -> Rabs Z <= M -> off <= (P - 1) * M + lost -> 1 <= P ->
  Rabs (rnd z - Z) <= ((1 + u) * P - 1) * M + (1 + u) * lost + eta.
Proof.
  intros z Z M P off lost Hz HZ Ho HP; destruct model as (Hu & He & Hr).
  specialize (Hr z).
  assert (A : Rabs (rnd z - Z) <= Rabs (rnd z - z) + Rabs (z - Z)).
  { replace (rnd z - Z) with ((rnd z - z) + (z - Z)) by ring; apply Rabs_triang. }
  assert (B : Rabs z <= Rabs (z - Z) + Rabs Z).
  { replace z with ((z - Z) + Z) at 1 by ring; apply Rabs_triang. }
  assert (u * Rabs z <= u * (off + M)) by (apply Rmult_le_compat_l; lra).
  nra.
Qed.

Lemma tree_error : forall t,
  Rabs (computed t - exact t)
  <= ((1 + u) ^ roundings t - 1) * magnitude t
     + INR (operations t) * (1 + u) ^ roundings t * eta.
Proof.
  destruct model as (Hu & He & Hr).
  assert (Grow : forall t k, (roundings t <= k)%nat ->
    ((1 + u) ^ roundings t - 1) * magnitude t + INR (operations t) * (1 + u) ^ roundings t * eta
    <= ((1 + u) ^ k - 1) * magnitude t + INR (operations t) * (1 + u) ^ k * eta).
  { intros t k Hk; generalize (power_le _ _ Hk) (magnitude_nonneg t) (pos_INR (operations t)).
    intros Hp Hm Ho; apply Rplus_le_compat.
    - apply Rmult_le_compat_r; lra.
    - apply Rmult_le_compat_r; [exact He|]; apply Rmult_le_compat_l; lra. }
  induction t as [a|a b|s IHs t IHt|a b t IHt]; simpl computed; simpl exact; simpl magnitude;
    simpl roundings; simpl operations.
  - replace (a - a) with 0 by ring; rewrite Rabs_R0; simpl; lra.
  - specialize (Hr (a * b)); rewrite Rabs_mult in Hr; simpl.
    assert (0 <= u * eta) by (apply Rmult_le_pos; assumption); nra.
  - set (k := max (roundings s) (roundings t)).
    specialize (Grow s k (Nat.le_max_l _ _)) as Gs; specialize (Grow t k (Nat.le_max_r _ _)) as Gt.
    generalize (power_ge_1 k); intros Hk.
    generalize (exact_magnitude (Plus s t)); simpl exact; simpl magnitude; intros HM.
    assert (Off : Rabs (computed s + computed t - (exact s + exact t))
                  <= Rabs (computed s - exact s) + Rabs (computed t - exact t)).
    { replace (computed s + computed t - (exact s + exact t))
        with ((computed s - exact s) + (computed t - exact t)) by ring; apply Rabs_triang. }
    eapply Rle_trans;
      [apply (one_rounding _ _ (magnitude s + magnitude t) ((1 + u) ^ k) _
         ((INR (operations s) + INR (operations t)) * (1 + u) ^ k * eta) Off HM)|].
    + lra.
    + exact Hk.
    + rewrite S_INR, plus_INR; simpl pow.
      assert (1 <= (1 + u) * (1 + u) ^ k) by nra.
      assert (eta <= (1 + u) * (1 + u) ^ k * eta) by nra.
      lra.
  - generalize (power_ge_1 (roundings t)); intros Hk.
    generalize (exact_magnitude (Fused a b t)); simpl exact; simpl magnitude; intros HM.
    assert (Off : Rabs (a * b + computed t - (a * b + exact t)) <= Rabs (computed t - exact t)).
    { replace (a * b + computed t - (a * b + exact t)) with (computed t - exact t) by ring; lra. }
    eapply Rle_trans;
      [apply (one_rounding _ _ (Rabs a * Rabs b + magnitude t) ((1 + u) ^ roundings t) _
         (INR (operations t) * (1 + u) ^ roundings t * eta) Off HM)|].
    + assert (0 <= Rabs a * Rabs b) by (apply Rmult_le_pos; apply Rabs_pos); nra.
    + exact Hk.
    + rewrite S_INR; simpl pow.
      assert (1 <= (1 + u) * (1 + u) ^ roundings t) by nra.
      assert (eta <= (1 + u) * (1 + u) ^ roundings t * eta) by nra.
      lra.
Qed.

End Model.

(** gamma_k = k u / (1 - k u). *)
Definition gamma (k : nat) (u : R) : R := INR k * u / (1 - INR k * u).

Lemma power_gamma : forall k u, 0 <= u -> INR k * u < 1 -> (1 + u) ^ k - 1 <= gamma k u.
Proof.
  intros k u Hu Hk.
  assert (P : forall j, (j <= k)%nat -> (1 + u) ^ j * (1 - INR j * u) <= 1).
  { induction j as [|j IH]; intros Hj; [simpl; lra|].
    assert (Hj' : (j <= k)%nat) by lia; specialize (IH Hj'); rewrite S_INR; simpl pow.
    assert (0 < (1 + u) ^ j) by (apply pow_lt; lra).
    assert (0 <= INR j) by apply pos_INR.
    assert (0 <= (1 + u) ^ j * ((INR j + 1) * (u * u))).
    { apply Rmult_le_pos; [lra|apply Rmult_le_pos; [lra|apply Rle_0_sqr]]. }
    replace ((1 + u) * (1 + u) ^ j * (1 - (INR j + 1) * u))
      with ((1 + u) ^ j * (1 - INR j * u) - (1 + u) ^ j * ((INR j + 1) * (u * u))) by ring.
    lra. }
  specialize (P k (le_n k)); unfold gamma.
  apply Rmult_le_reg_r with (1 - INR k * u); [lra|].
  replace (INR k * u / (1 - INR k * u) * (1 - INR k * u)) with (INR k * u) by (field; lra).
  lra.
Qed.

Lemma gamma_le : forall j k u, 0 <= u -> (j <= k)%nat -> INR k * u < 1 -> gamma j u <= gamma k u.
Proof.
  intros j k u Hu Hjk Hk; apply le_INR in Hjk; unfold gamma.
  assert (INR j * u <= INR k * u) by (apply Rmult_le_compat_r; assumption).
  assert (0 <= INR j * u) by (apply Rmult_le_pos; [apply pos_INR|exact Hu]).
  apply Rmult_le_compat; try assumption.
  - apply Rlt_le, Rinv_0_lt_compat; lra.
  - apply Rinv_le_contravar; lra.
Qed.

Lemma gamma_nonneg : forall k u, 0 <= u -> INR k * u < 1 -> 0 <= gamma k u.
Proof.
  intros k u Hu Hk; apply Rmult_le_pos.
  - apply Rmult_le_pos; [apply pos_INR|exact Hu].
  - apply Rlt_le, Rinv_0_lt_compat; lra.
Qed.

(** "|fl(sum) - sum| <= gamma_k sum |terms|" for k terms, and what underflow adds: every one of at
    most 2 k operations eta, raised by what later roundings do to it. *)
Theorem sum_forward_error : forall rnd u eta t k,
  rounds rnd u eta -> (terms t <= k)%nat -> INR k * u < 1 ->
  Rabs (computed rnd t - exact t)
  <= gamma k u * magnitude t + INR (2 * k) * (1 + gamma k u) * eta.
Proof.
  intros rnd u eta t k M Hk Hu; generalize M; intros (U & E & _).
  eapply Rle_trans; [apply (tree_error rnd u eta M)|].
  assert (R : (roundings t <= k)%nat) by (generalize (roundings_terms t); lia).
  assert (O : (operations t <= 2 * k)%nat).
  { generalize (operations_terms t); unfold terms in *; lia. }
  apply le_INR in O.
  generalize (power_le rnd u eta M _ _ R) (power_gamma k u U Hu) (magnitude_nonneg t)
    (power_ge_1 rnd u eta M (roundings t)) (pos_INR (operations t)).
  intros P1 P2 P3 P4 P5; apply Rplus_le_compat.
  - apply Rmult_le_compat_r; lra.
  - apply Rmult_le_compat_r; [exact E|]; apply Rmult_le_compat; lra.
Qed.

(** The tree is one of the dot product of x and y of length n, and of the numbers of a bias. *)
Definition evaluates (n : nat) (x y : vector) (bias : list R) (t : tree) : Prop :=
  Permutation (products t) (map (fun i => (x i, y i)) (seq 0 n)) /\ Permutation (numbers t) bias.

Lemma total_seq : forall n f, total (map f (seq 0 n)) = sum n f.
Proof.
  induction n as [|n IH]; intros f; [reflexivity|].
  rewrite seq_S, map_app, total_app, IH; simpl; ring.
Qed.

Lemma evaluates_exact : forall n x y bias t,
  evaluates n x y bias t -> exact t = dot n x y + total bias.
Proof.
  intros n x y bias t [P B]; rewrite exact_terms, (total_permutation _ _ B); f_equal.
  rewrite (total_permutation _ _ (Permutation_map _ P)), map_map, total_seq; reflexivity.
Qed.

Lemma evaluates_magnitude : forall n x y bias t, evaluates n x y bias t ->
  magnitude t = dot n (fun i => Rabs (x i)) (fun i => Rabs (y i)) + total (map Rabs bias).
Proof.
  intros n x y bias t [P B]; rewrite magnitude_terms.
  rewrite (total_permutation _ _ (Permutation_map Rabs B)); f_equal.
  rewrite (total_permutation _ _ (Permutation_map _ P)), map_map, total_seq; reflexivity.
Qed.

Lemma evaluates_terms : forall n x y bias t,
  evaluates n x y bias t -> terms t = (n + length bias)%nat.
Proof.
  intros n x y bias t [P B]; unfold terms.
  rewrite (Permutation_length P), (Permutation_length B), map_length, seq_length; reflexivity.
Qed.

(** "|fl(XY) - XY| <= gamma_k |X||Y| entrywise" (section 3), one entry. *)
Theorem dot_forward_error : forall rnd u eta n x y t,
  rounds rnd u eta -> evaluates n x y [] t -> INR n * u < 1 ->
  Rabs (computed rnd t - dot n x y)
  <= gamma n u * dot n (fun i => Rabs (x i)) (fun i => Rabs (y i))
     + INR (2 * n) * (1 + gamma n u) * eta.
Proof.
  intros rnd u eta n x y t M T Hu.
  generalize (sum_forward_error rnd u eta t n M).
  rewrite (evaluates_exact _ _ _ _ _ T), (evaluates_magnitude _ _ _ _ _ T),
    (evaluates_terms _ _ _ _ _ T); simpl; rewrite Nat.add_0_r, !Rplus_0_r; auto.
Qed.

(** ** Sums of numbers *)

(** Of two numbers of the format, a sum is of the format and has a relative error only: nothing is
    lost to underflow. *)
Definition sums_round (format : R -> Prop) (rnd : R -> R) (u : R) : Prop :=
  0 <= u /\ forall a b, format a -> format b ->
  format (rnd (a + b)) /\ Rabs (rnd (a + b) - (a + b)) <= u * Rabs (a + b).

Lemma number_tree_error : forall format rnd u t,
  sums_round format rnd u -> products t = [] -> Forall format (numbers t) ->
  format (computed rnd t)
  /\ Rabs (computed rnd t - exact t) <= ((1 + u) ^ roundings t - 1) * magnitude t.
Proof.
  intros format rnd u t [Hu Hr]; induction t as [a|a b|s IHs t IHt|a b t IHt];
    simpl; intros HP HN; try discriminate.
  - inversion HN; subst; split; [assumption|].
    replace (a - a) with 0 by ring; rewrite Rabs_R0; lra.
  - apply app_eq_nil in HP; destruct HP as [Ps Pt].
    apply Forall_app in HN; destruct HN as [Ns Nt].
    destruct (IHs Ps Ns) as [Fs Es]; destruct (IHt Pt Nt) as [Ft Et].
    destruct (Hr _ _ Fs Ft) as [F E]; split; [exact F|].
    set (k := max (roundings s) (roundings t)).
    assert (Pow : forall j, (j <= k)%nat -> 1 <= (1 + u) ^ j <= (1 + u) ^ k).
    { intros j Hj; split; [apply pow_R1_Rle; lra|apply Rle_pow; [lra|exact Hj]]. }
    assert (Es' : Rabs (computed rnd s - exact s) <= ((1 + u) ^ k - 1) * magnitude s).
    { eapply Rle_trans; [exact Es|]; apply Rmult_le_compat_r; [apply magnitude_nonneg|].
      generalize (Pow _ (Nat.le_max_l _ _ : (roundings s <= k)%nat)); lra. }
    assert (Et' : Rabs (computed rnd t - exact t) <= ((1 + u) ^ k - 1) * magnitude t).
    { eapply Rle_trans; [exact Et|]; apply Rmult_le_compat_r; [apply magnitude_nonneg|].
      generalize (Pow _ (Nat.le_max_r _ _ : (roundings t <= k)%nat)); lra. }
    set (z := computed rnd s + computed rnd t) in *.
    assert (Off : Rabs (z - (exact s + exact t))
                  <= Rabs (computed rnd s - exact s) + Rabs (computed rnd t - exact t)).
    { unfold z; replace (computed rnd s + computed rnd t - (exact s + exact t))
        with ((computed rnd s - exact s) + (computed rnd t - exact t)) by ring; apply Rabs_triang. }
    generalize (exact_magnitude (Plus s t)); simpl; intros HM.
    assert (A : Rabs (rnd z - (exact s + exact t)) <= Rabs (rnd z - z) + Rabs (z - (exact s + exact t))).
    { replace (rnd z - (exact s + exact t)) with ((rnd z - z) + (z - (exact s + exact t))) by ring;
        apply Rabs_triang. }
    assert (B : Rabs z <= Rabs (z - (exact s + exact t)) + Rabs (exact s + exact t)).
    { replace z with ((z - (exact s + exact t)) + (exact s + exact t)) at 1 by ring;
        apply Rabs_triang. }
    assert (C : u * Rabs z <= u * (((1 + u) ^ k - 1) * (magnitude s + magnitude t)
                                   + (magnitude s + magnitude t)))
      by (apply Rmult_le_compat_l; lra).
    lra.
Qed.

Theorem number_sum_error : forall format rnd u t k,
  sums_round format rnd u -> products t = [] -> Forall format (numbers t) ->
  (terms t <= k)%nat -> INR k * u < 1 ->
  Rabs (computed rnd t - exact t) <= gamma k u * magnitude t.
Proof.
  intros format rnd u t k M HP HN Hk Hu; generalize M; intros [U _].
  eapply Rle_trans; [apply (number_tree_error format rnd u t M HP HN)|].
  apply Rmult_le_compat_r; [apply magnitude_nonneg|].
  eapply Rle_trans; [|apply (power_gamma k u U Hu)].
  apply Rplus_le_compat_r, Rle_pow; [lra|].
  generalize (roundings_terms t); lia.
Qed.
