(** Local errors, "(a, b) for a |z| + b", of operations that act entry by entry:
    robustcert/network/linear.py and robustcert/activations/n_activation.py. *)

Require Import Reals Lra Lia Psatz Arith List Permutation.
From Robustcert Require Import Sums Vectors Lipschitz Activations Rounding.
Import ListNotations.
Open Scope R_scope.

(** An error of at most p |z_i| + q in every entry. *)
Lemma entrywise_error : forall n p q (z computed exact : vector),
  0 <= p -> 0 <= q ->
  (forall i, (i < n)%nat -> Rabs (computed i - exact i) <= p * Rabs (z i) + q) ->
  distance n computed exact <= p * norm n z + q * sqrt (INR n).
Proof.
  intros n p q z c e Hp Hq H.
  apply Rle_trans with (norm n (vadd (vscale p (fun i => Rabs (z i))) (fun _ => q))).
  - apply norm_le; intros i Hi; eapply Rle_trans; [apply (H i Hi)|apply Rle_abs].
  - eapply Rle_trans; [apply norm_triangle|].
    rewrite norm_scale, (Rabs_pos_eq p Hp), (norm_abs n z), norm_constant by exact Hq; lra.
Qed.

(** A scale and a shift of every entry, at most K and T, fused or not. *)
Theorem scaling_forward_error :
  forall rnd u eta tiny n (scale shift z : vector) (t : nat -> tree) K T,
  rounds rnd u eta -> u <= / 4 -> eta <= tiny * u -> 0 <= tiny -> 0 <= K -> 0 <= T ->
  (forall i, (i < n)%nat -> Rabs (scale i) <= K /\ Rabs (shift i) <= T
     /\ evaluates 1 (fun _ => scale i) (fun _ => z i) [shift i] (t i)) ->
  distance n (fun i => computed rnd (t i)) (fun i => scale i * z i + shift i)
  <= gamma 2 u * K * norm n z + (gamma 2 u * T + 4 * tiny) * sqrt (INR n).
Proof.
  intros rnd u eta tiny n scale shift z t K T M Hu He Ht HK HT H.
  generalize M; intros (U & E & _).
  assert (Two : INR 2 * u < 1) by (simpl; lra).
  assert (G := gamma_nonneg 2 u U Two).
  assert (G1 : gamma 2 u <= 1).
  { unfold gamma; simpl INR; apply Rmult_le_reg_r with (1 - (1 + 1) * u); [lra|].
    unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra; lra. }
  apply entrywise_error.
  - apply Rmult_le_pos; assumption.
  - assert (0 <= gamma 2 u * T) by (apply Rmult_le_pos; assumption); lra.
  - intros i Hi; destruct (H i Hi) as (HS & HF & HE).
    generalize (sum_forward_error rnd u eta (t i) 2 M).
    rewrite (evaluates_exact _ _ _ _ _ HE), (evaluates_magnitude _ _ _ _ _ HE),
      (evaluates_terms _ _ _ _ _ HE).
    unfold dot; simpl sum; simpl total; rewrite !Rplus_0_l, !Rplus_0_r; intros B.
    specialize (B (le_n 2) Two); eapply Rle_trans; [exact B|].
    assert (A1 : Rabs (scale i) * Rabs (z i) <= K * Rabs (z i))
      by (apply Rmult_le_compat_r; [apply Rabs_pos|exact HS]).
    assert (A2 : gamma 2 u * (Rabs (scale i) * Rabs (z i) + Rabs (shift i))
                 <= gamma 2 u * (K * Rabs (z i) + T)) by (apply Rmult_le_compat_l; lra).
    assert (A3 : INR (2 * 2) * (1 + gamma 2 u) * eta <= 8 * (tiny * u)).
    { simpl INR; apply Rmult_le_compat; lra. }
    assert (tiny * u <= tiny * / 4) by (apply Rmult_le_compat_l; assumption).
    lra.
Qed.

Lemma n_activation_size : forall low high a,
  Rabs (n_activation low high a) <= Rabs a + Rabs (n_activation low high 0).
Proof. intros; unfold n_activation; by_cases. Qed.

(** The N-activation rounds once: a and twice the clamped a are numbers of the format. *)
Theorem n_activation_error :
  forall format rnd u n (low high z : vector) top,
  sums_round format rnd u ->
  (forall i, (i < n)%nat -> format (z i)
     /\ format (- (2 * Rmin (Rmax (z i) (low i)) (high i)))
     /\ Rabs (n_activation (low i) (high i) 0) <= top) -> 0 <= top ->
  distance n (fun i => rnd (n_activation (low i) (high i) (z i)))
             (fun i => n_activation (low i) (high i) (z i))
  <= u * norm n z + u * top * sqrt (INR n).
Proof.
  intros format rnd u n low high z top [U S] H H0; apply entrywise_error.
  - exact U.
  - apply Rmult_le_pos; assumption.
  - intros i Hi; destruct (H i Hi) as (F1 & F2 & T).
    destruct (S _ _ F1 F2) as [_ E].
    fold (n_activation (low i) (high i) (z i)) in E.
    unfold n_activation, Rminus in *.
    eapply Rle_trans; [exact E|].
    generalize (n_activation_size (low i) (high i) (z i)); unfold n_activation, Rminus; intros Z.
    rewrite <- Rmult_plus_distr_l; apply Rmult_le_compat_l; [exact U|]; lra.
Qed.
