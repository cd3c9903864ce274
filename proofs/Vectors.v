(** Vectors of R^n are functions [nat -> R] of which the first n values count. *)

Require Import Reals Lra Lia Psatz.
From Robustcert Require Import Sums.
Open Scope R_scope.

Definition vector := nat -> R.
Definition matrix := nat -> nat -> R.

Definition vadd (x y : vector) : vector := fun i => x i + y i.
Definition vsub (x y : vector) : vector := fun i => x i - y i.
Definition vscale (c : R) (x : vector) : vector := fun i => c * x i.

Definition dot (n : nat) (x y : vector) : R := sum n (fun i => x i * y i).

(** Square of the Euclidean norm, and the norm. *)
Definition square (n : nat) (x : vector) : R := sum n (fun i => x i * x i).
Definition norm (n : nat) (x : vector) : R := sqrt (square n x).
Definition distance (n : nat) (x y : vector) : R := norm n (vsub x y).

(** Product of a matrix with n columns and a vector. *)
Definition linear (n : nat) (A : matrix) (x : vector) : vector := fun i => dot n (A i) x.

Lemma square_nonneg : forall n x, 0 <= square n x.
Proof. intros; apply sum_nonneg; intros; apply Rle_0_sqr. Qed.

Lemma norm_nonneg : forall n x, 0 <= norm n x.
Proof. intros; apply sqrt_pos. Qed.

Lemma distance_nonneg : forall n x y, 0 <= distance n x y.
Proof. intros; apply norm_nonneg. Qed.

Lemma norm_square : forall n x, norm n x * norm n x = square n x.
Proof. intros; apply sqrt_sqrt, square_nonneg. Qed.

Lemma square_ext : forall n x y, (forall i, (i < n)%nat -> x i = y i) -> square n x = square n y.
Proof. intros n x y H; apply sum_ext; intros i Hi; rewrite H; auto. Qed.

Lemma norm_ext : forall n x y, (forall i, (i < n)%nat -> x i = y i) -> norm n x = norm n y.
Proof. intros n x y H; unfold norm; rewrite (square_ext n x y H); reflexivity. Qed.

Lemma dot_comm : forall n x y, dot n x y = dot n y x.
Proof. intros; apply sum_ext; intros; ring. Qed.

Lemma dot_add_r : forall n x y z, dot n x (vadd y z) = dot n x y + dot n x z.
Proof. intros; unfold dot; rewrite <- sum_plus; apply sum_ext; intros; unfold vadd; ring. Qed.

Lemma dot_sub_r : forall n x y z, dot n x (vsub y z) = dot n x y - dot n x z.
Proof. intros; unfold dot; rewrite <- sum_minus; apply sum_ext; intros; unfold vsub; ring. Qed.

Lemma dot_scale_r : forall n c x y, dot n x (vscale c y) = c * dot n x y.
Proof. intros; unfold dot; rewrite <- sum_scal; apply sum_ext; intros; unfold vscale; ring. Qed.

Lemma square_add : forall n x y, square n (vadd x y) = square n x + 2 * dot n x y + square n y.
Proof.
  intros; unfold square, dot; rewrite <- sum_scal, <- !sum_plus.
  apply sum_ext; intros; unfold vadd; ring.
Qed.

Lemma square_combination : forall n s t x y,
  square n (fun i => s * x i - t * y i)
  = s * s * square n x - 2 * s * t * dot n x y + t * t * square n y.
Proof.
  intros; unfold square, dot; rewrite <- !sum_scal, <- sum_minus, <- sum_plus.
  apply sum_ext; intros; ring.
Qed.

(** Cauchy and Schwarz, squared and rooted. *)
Lemma cauchy_schwarz_square : forall n x y, dot n x y * dot n x y <= square n x * square n y.
Proof.
  intros n x y.
  assert (H : forall s t,
    0 <= s * s * square n x - 2 * s * t * dot n x y + t * t * square n y).
  { intros s t; rewrite <- square_combination; apply square_nonneg. }
  generalize (square_nonneg n x) (square_nonneg n y); intros Hx Hy.
  destruct (Req_dec (square n y) 0) as [H0|H0].
  - destruct (Req_dec (dot n x y) 0) as [D0|D0]; [rewrite D0; nra|].
    specialize (H 1 ((square n x + 1) / (2 * dot n x y))).
    rewrite H0 in H; exfalso.
    replace (2 * 1 * ((square n x + 1) / (2 * dot n x y)) * dot n x y)
      with (square n x + 1) in H by (field; exact D0).
    lra.
  - specialize (H (square n y) (dot n x y)).
    assert (0 <= square n y * (square n x * square n y - dot n x y * dot n x y)) by nra.
    assert (0 < square n y) by lra.
    assert (0 <= square n x * square n y - dot n x y * dot n x y); [|lra].
    apply Rmult_le_reg_l with (square n y); [assumption|lra].
Qed.

Lemma cauchy_schwarz : forall n x y, Rabs (dot n x y) <= norm n x * norm n y.
Proof.
  intros n x y; unfold norm; rewrite <- sqrt_mult by apply square_nonneg.
  rewrite <- sqrt_Rsqr_abs; apply sqrt_le_1_alt, cauchy_schwarz_square.
Qed.

Lemma le_of_squares : forall a b, 0 <= b -> a * a <= b * b -> a <= b.
Proof. intros a b Hb H; apply Rsqr_incr_0_var; assumption. Qed.

(** Minkowski: the triangle inequality. *)
Lemma norm_triangle : forall n x y, norm n (vadd x y) <= norm n x + norm n y.
Proof.
  intros n x y; generalize (norm_nonneg n x) (norm_nonneg n y); intros.
  apply le_of_squares; [lra|].
  rewrite norm_square, square_add.
  generalize (cauchy_schwarz n x y) (norm_square n x) (norm_square n y) (Rle_abs (dot n x y)).
  intros; nra.
Qed.

Lemma norm_scale : forall n c x, norm n (vscale c x) = Rabs c * norm n x.
Proof.
  intros n c x; unfold norm.
  replace (square n (vscale c x)) with (c * c * square n x).
  - rewrite sqrt_mult by (try apply Rle_0_sqr; apply square_nonneg).
    fold (Rsqr c); rewrite sqrt_Rsqr_abs; reflexivity.
  - unfold square; rewrite <- sum_scal; apply sum_ext; intros; unfold vscale; ring.
Qed.

Lemma distance_sym : forall n x y, distance n x y = distance n y x.
Proof.
  intros; unfold distance, norm; f_equal; apply sum_ext; intros; unfold vsub; ring.
Qed.

Lemma distance_triangle : forall n x y z, distance n x z <= distance n x y + distance n y z.
Proof.
  intros n x y z; unfold distance.
  rewrite (norm_ext n (vsub x z) (vadd (vsub x y) (vsub y z)))
    by (intros; unfold vsub, vadd; ring).
  apply norm_triangle.
Qed.

Lemma norm_zero : forall n, norm n (fun _ => 0) = 0.
Proof.
  intros n; unfold norm, square.
  rewrite (sum_ext n _ (fun _ => 0)), sum_zero by (intros; ring); apply sqrt_0.
Qed.

Lemma distance_same : forall n x, distance n x x = 0.
Proof.
  intros n x; unfold distance; rewrite (norm_ext n _ (fun _ => 0)); [apply norm_zero|].
  intros; unfold vsub; ring.
Qed.

(** Entries that are not larger make a norm that is not larger. *)
Lemma norm_le : forall n x y,
  (forall i, (i < n)%nat -> Rabs (x i) <= Rabs (y i)) -> norm n x <= norm n y.
Proof.
  intros n x y H; apply sqrt_le_1_alt, sum_le; intros i Hi.
  apply Rsqr_le_abs_1, H, Hi.
Qed.

Lemma norm_abs : forall n x, norm n (fun i => Rabs (x i)) = norm n x.
Proof.
  intros n x; unfold norm; f_equal; apply sum_ext; intros.
  symmetry; apply Rsqr_abs.
Qed.

Lemma coordinate_le_norm : forall n x i, (i < n)%nat -> Rabs (x i) <= norm n x.
Proof.
  intros n x i Hi; rewrite <- sqrt_Rsqr_abs; apply sqrt_le_1_alt.
  apply (sum_term n (fun k => x k * x k) i Hi); intros; apply Rle_0_sqr.
Qed.

Lemma norm_constant : forall n c, 0 <= c -> norm n (fun _ => c) = sqrt (INR n) * c.
Proof.
  intros n c Hc; unfold norm, square; rewrite sum_const.
  rewrite sqrt_mult by (try apply pos_INR; nra); rewrite sqrt_square by exact Hc; reflexivity.
Qed.

(** Two coordinates of a vector differ by at most root 2 times its norm. *)
Lemma coordinate_difference : forall n x i j,
  (i < n)%nat -> (j < n)%nat -> Rabs (x i - x j) <= sqrt 2 * norm n x.
Proof.
  intros n x i j Hi Hj.
  destruct (Nat.eq_dec i j) as [->|Hij].
  { replace (x j - x j) with 0 by ring; rewrite Rabs_R0.
    apply Rmult_le_pos; [apply sqrt_pos|apply norm_nonneg]. }
  unfold norm; rewrite <- sqrt_mult by (try lra; apply square_nonneg).
  rewrite <- sqrt_Rsqr_abs; apply sqrt_le_1_alt.
  assert (x i * x i + x j * x j <= square n x).
  { apply (sum_two_terms n (fun k => x k * x k)); auto; intros; apply Rle_0_sqr. }
  unfold Rsqr; generalize (Rle_0_sqr (x i + x j)); unfold Rsqr; intros; nra.
Qed.

Lemma linear_sub : forall n A x y i,
  linear n A (vsub x y) i = linear n A x i - linear n A y i.
Proof. intros; apply dot_sub_r. Qed.
