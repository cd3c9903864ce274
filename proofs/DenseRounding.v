(** Forward error of a dense layer, as robustcert/network/local_error.py states it. *)

Require Import Reals Lra Lia Psatz Arith List Permutation.
From Robustcert Require Import Sums Vectors Lipschitz Residual Rounding.
Import ListNotations.
Open Scope R_scope.

Definition absolute (W : matrix) : matrix := fun i j => Rabs (W i j).

(** "Upper bound on the norm of the map with kernel |W|, by the Schur test": the root of the largest
    sum of a row times that of the largest sum of a column. *)
Theorem schur_test : forall m n W rows columns,
  0 <= rows -> 0 <= columns ->
  (forall i, (i < m)%nat -> sum n (fun j => Rabs (W i j)) <= rows) ->
  (forall j, (j < n)%nat -> sum m (fun i => Rabs (W i j)) <= columns) ->
  norm_at_most m n (sqrt rows * sqrt columns) (absolute W).
Proof.
  intros m n W rows columns Hr Hc HR HC x; apply le_of_squares.
  { apply Rmult_le_pos; [apply Rmult_le_pos; apply sqrt_pos|apply norm_nonneg]. }
  replace (sqrt rows * sqrt columns * norm n x * (sqrt rows * sqrt columns * norm n x))
    with ((sqrt rows * sqrt rows) * (sqrt columns * sqrt columns) * (norm n x * norm n x)) by ring.
  rewrite !sqrt_sqrt, !norm_square by assumption.
  apply Rle_trans with (sum m (fun i => rows * sum n (fun j => Rabs (W i j) * (x j * x j)))).
  - apply sum_le; intros i Hi.
    (* Cauchy and Schwarz with roots of weights. *)
    generalize (cauchy_schwarz_square n (fun j => sqrt (Rabs (W i j)))
      (fun j => sqrt (Rabs (W i j)) * x j)).
    unfold linear, dot, square, absolute.
    rewrite (sum_ext n (fun j => sqrt (Rabs (W i j)) * (sqrt (Rabs (W i j)) * x j))
      (fun j => Rabs (W i j) * x j))
      by (intros; rewrite <- Rmult_assoc, sqrt_sqrt by apply Rabs_pos; reflexivity).
    rewrite (sum_ext n (fun j => sqrt (Rabs (W i j)) * sqrt (Rabs (W i j)))
      (fun j => Rabs (W i j))) by (intros; apply sqrt_sqrt, Rabs_pos).
    rewrite (sum_ext n (fun j => sqrt (Rabs (W i j)) * x j * (sqrt (Rabs (W i j)) * x j))
      (fun j => Rabs (W i j) * (x j * x j))).
    + intros H; eapply Rle_trans; [exact H|].
      apply Rmult_le_compat_r; [|apply HR, Hi].
      apply sum_nonneg; intros; apply Rmult_le_pos; [apply Rabs_pos|apply Rle_0_sqr].
    + intros j _; transitivity (sqrt (Rabs (W i j)) * sqrt (Rabs (W i j)) * (x j * x j)); [ring|].
      rewrite sqrt_sqrt by apply Rabs_pos; reflexivity.
  - rewrite sum_scal, Rmult_assoc; apply Rmult_le_compat_l; [exact Hr|].
    rewrite sum_swap; unfold square; rewrite <- sum_scal.
    apply sum_le; intros j Hj; rewrite sum_scal_r.
    apply Rmult_le_compat_r; [apply Rle_0_sqr|apply HC, Hj].
Qed.

(** Rounding error of W z + b, "(a, b) for a |z| + b": every output is a sum of its n products and
    at most one number, in an order of its own. N bounds the norm of |W|. *)
Theorem dense_forward_error : forall rnd u eta m n W z (bias : nat -> list R) (t : nat -> tree) N,
  rounds rnd u eta -> INR (n + 1) * u < 1 ->
  (forall i, (i < m)%nat -> (length (bias i) <= 1)%nat /\ evaluates n (W i) z (bias i) (t i)) ->
  norm_at_most m n N (absolute W) ->
  let b := fun i => total (bias i) in
  distance m (fun i => computed rnd (t i)) (vadd (linear n W z) b)
  <= gamma (n + 1) u * N * norm n z
     + (gamma (n + 1) u * norm m b
        + INR (2 * (n + 1)) * (1 + gamma (n + 1) u) * eta * sqrt (INR m)).
Proof.
  intros rnd u eta m n W z bias t N M Hu HT HN b; generalize M; intros (U & E & _).
  set (g := gamma (n + 1) u).
  assert (G : 0 <= g) by (apply gamma_nonneg; assumption).
  set (q := INR (2 * (n + 1)) * (1 + g) * eta).
  assert (Q : 0 <= q).
  { apply Rmult_le_pos; [apply Rmult_le_pos; [apply pos_INR|lra]|exact E]. }
  set (sizes := vadd (vscale g (vadd (linear n (absolute W) (fun j => Rabs (z j)))
                                      (fun i => Rabs (b i)))) (fun _ => q)).
  apply Rle_trans with (norm m sizes).
  - apply norm_le; intros i Hi; destruct (HT i Hi) as [L T].
    assert (B : Rabs (b i) = total (map Rabs (bias i))).
    { unfold b; destruct (bias i) as [|c [|d l]]; simpl in *; try lia;
        rewrite ?Rplus_0_r; [apply Rabs_R0|reflexivity]. }
    generalize (sum_forward_error rnd u eta (t i) (n + 1) M).
    rewrite (evaluates_exact _ _ _ _ _ T), (evaluates_magnitude _ _ _ _ _ T),
      (evaluates_terms _ _ _ _ _ T), <- B.
    intros H; specialize (H ltac:(lia) Hu).
    eapply Rle_trans; [exact H|eapply Rle_trans; [|apply Rle_abs]].
    apply Req_le; reflexivity.
  - unfold sizes; eapply Rle_trans; [apply norm_triangle|].
    rewrite norm_constant, norm_scale, (Rabs_pos_eq g G) by exact Q.
    generalize (norm_triangle m (linear n (absolute W) (fun j => Rabs (z j))) (fun i => Rabs (b i))).
    rewrite (norm_abs m b); intros H.
    specialize (HN (fun j => Rabs (z j))); rewrite (norm_abs n z) in HN.
    assert (g * norm m (vadd (linear n (absolute W) (fun j => Rabs (z j))) (fun i => Rabs (b i)))
            <= g * (N * norm n z + norm m b)) by (apply Rmult_le_compat_l; lra).
    fold q; lra.
Qed.

(** With eta at most tiny times u, as in IEEE arithmetic where tiny is the smallest normal number,
    and (n + 1) u below 1/2: the constants of [affine_rounding]. *)
Theorem dense_forward_error_tiny :
  forall rnd u eta tiny m n W z (bias : nat -> list R) (t : nat -> tree) N,
  rounds rnd u eta -> INR (n + 1) * u <= / 2 -> eta <= tiny * u -> 0 <= tiny -> u <= / 2 ->
  (forall i, (i < m)%nat -> (length (bias i) <= 1)%nat /\ evaluates n (W i) z (bias i) (t i)) ->
  norm_at_most m n N (absolute W) ->
  let b := fun i => total (bias i) in
  distance m (fun i => computed rnd (t i)) (vadd (linear n W z) b)
  <= gamma (n + 1) u * N * norm n z
     + (gamma (n + 1) u * norm m b + 2 * INR (n + 1) * tiny * sqrt (INR m)).
Proof.
  intros rnd u eta tiny m n W z bias t N M Hu Ht Htiny Hhalf HT HN b.
  generalize M; intros (U & E & _).
  eapply Rle_trans; [apply (dense_forward_error rnd u eta m n W z bias t N M); try assumption; lra|].
  apply Rplus_le_compat_l, Rplus_le_compat_l, Rmult_le_compat_r; [apply sqrt_pos|].
  rewrite mult_INR; change (INR 2) with 2.
  assert (G : gamma (n + 1) u <= 1).
  { unfold gamma; apply Rmult_le_reg_r with (1 - INR (n + 1) * u); [lra|].
    unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra; lra. }
  rewrite Rmult_assoc; apply Rmult_le_compat_l.
  - generalize (pos_INR (n + 1)); lra.
  - apply Rle_trans with (2 * (tiny * u)); [apply Rmult_le_compat|]; try lra.
    + generalize (gamma_nonneg (n + 1) u U); intros H.
      assert (INR (n + 1) * u < 1) by lra; specialize (H H0); lra.
    + nra.
Qed.
