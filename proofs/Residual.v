(** The residual lemma: docs/soundness.md, section 3; robustcert/check/norms.py. *)

Require Import Reals Lra Lia Psatz ZArith.
From Robustcert Require Import Sums Vectors Lipschitz.
Open Scope R_scope.

(** The l2 operator norm of an m x n matrix is at most K. *)
Definition norm_at_most (m n : nat) (K : R) (A : matrix) : Prop :=
  forall x, norm m (linear n A x) <= K * norm n x.

Definition frobenius (m n : nat) (A : matrix) : R := sqrt (sum m (fun i => square n (A i))).

(** E = t I - A'A - R'R for A with m rows and R with k rows. *)
Definition residual (m k : nat) (t : R) (A R : matrix) : matrix := fun j l =>
  (if Nat.eqb l j then t else 0)
  - sum m (fun i => A i j * A i l) - sum k (fun i => R i j * R i l).

Lemma frobenius_nonneg : forall m n A, 0 <= frobenius m n A.
Proof. intros; apply sqrt_pos. Qed.

Lemma frobenius_square : forall m n A,
  frobenius m n A * frobenius m n A = sum m (fun i => square n (A i)).
Proof. intros; apply sqrt_sqrt, sum_nonneg; intros; apply square_nonneg. Qed.

Lemma norm_at_most_frobenius : forall m n A, norm_at_most m n (frobenius m n A) A.
Proof.
  intros m n A x; apply le_of_squares.
  { apply Rmult_le_pos; [apply frobenius_nonneg|apply norm_nonneg]. }
  rewrite norm_square.
  replace (frobenius m n A * norm n x * (frobenius m n A * norm n x))
    with ((frobenius m n A * frobenius m n A) * (norm n x * norm n x)) by ring.
  rewrite frobenius_square, norm_square, <- sum_scal_r.
  apply sum_le; intros i _; apply cauchy_schwarz_square.
Qed.

Lemma gram_form : forall m n A x,
  dot n x (linear n (fun j l => sum m (fun i => A i j * A i l)) x) = square m (linear n A x).
Proof.
  intros m n A x; unfold dot, linear, square, dot.
  transitivity (sum n (fun j => sum m (fun i => sum n (fun l => A i j * x j * (A i l * x l))))).
  - apply sum_ext; intros j _; rewrite sum_swap, <- sum_scal.
    apply sum_ext; intros l _; rewrite <- sum_scal_r, <- sum_scal.
    apply sum_ext; intros; ring.
  - rewrite sum_swap; apply sum_ext; intros i _.
    rewrite <- sum_scal_r; apply sum_ext; intros j _; rewrite sum_scal; reflexivity.
Qed.

Lemma residual_form : forall m k n t A R x,
  dot n x (linear n (residual m k t A R) x)
  = t * square n x - square m (linear n A x) - square k (linear n R x).
Proof.
  intros m k n t A R x; rewrite <- !gram_form.
  assert (D : square n x = dot n x (linear n (fun j l => if Nat.eqb l j then 1 else 0) x)).
  { unfold square, dot, linear, dot; apply sum_ext; intros j Hj; f_equal.
    rewrite (sum_ext n _ (fun l => if Nat.eqb l j then x l else 0)).
    - symmetry; apply sum_single, Hj.
    - intros l _; destruct (Nat.eqb l j); ring. }
  rewrite D, <- dot_scale_r, <- !dot_sub_r.
  unfold dot; apply sum_ext; intros j _; f_equal.
  unfold linear, vsub, vscale, dot, residual; rewrite <- sum_scal, <- !sum_minus.
  apply sum_ext; intros l _; destruct (Nat.eqb l j); ring.
Qed.

(** "Lemma (residual). For any matrices A, R with n columns and any t, |A|^2 <= t + |E|": |Ax|^2 =
    t |x|^2 - |Rx|^2 - x'Ex, and x'Ex is at least - |E|_F |x|^2. *)
Theorem residual_bound : forall m k n t A R x,
  square m (linear n A x) <= (t + frobenius n n (residual m k t A R)) * square n x.
Proof.
  intros m k n t A R x.
  generalize (residual_form m k n t A R x) (square_nonneg k (linear n R x)); intros F S.
  set (E := residual m k t A R) in *.
  generalize (cauchy_schwarz n x (linear n E x)) (Rle_abs (- dot n x (linear n E x)))
    (norm_at_most_frobenius n n E x) (norm_nonneg n x) (norm_square n x).
  rewrite Rabs_Ropp; intros; nra.
Qed.

Theorem residual_norm : forall m k n t A R B,
  0 <= B -> t + frobenius n n (residual m k t A R) <= B * B -> norm_at_most m n B A.
Proof.
  intros m k n t A R B HB H x; apply le_of_squares.
  { apply Rmult_le_pos; [exact HB|apply norm_nonneg]. }
  rewrite norm_square; eapply Rle_trans; [apply (residual_bound m k n t A R)|].
  generalize (norm_square n x) (square_nonneg n x); intros; nra.
Qed.

(** A matrix and its transpose have the same bounds: the checker proves the narrower one. *)
Theorem norm_at_most_transpose : forall m n K A,
  0 <= K -> norm_at_most n m K (fun j i => A i j) -> norm_at_most m n K A.
Proof.
  intros m n K A HK H x.
  assert (T : square m (linear n A x)
              = dot n x (linear m (fun j i => A i j) (linear n A x))).
  { transitivity (sum m (fun i => sum n (fun j => x j * (A i j * linear n A x i)))).
    - apply sum_ext; intros i _; unfold linear at 1, dot.
      rewrite <- sum_scal_r; apply sum_ext; intros; ring.
    - rewrite sum_swap; apply sum_ext; intros j _; rewrite sum_scal; reflexivity. }
  specialize (H (linear n A x)).
  generalize (cauchy_schwarz n x (linear m (fun j i => A i j) (linear n A x)))
    (Rle_abs (dot n x (linear m (fun j i => A i j) (linear n A x))))
    (norm_nonneg n x) (norm_nonneg m (linear n A x)) (norm_square m (linear n A x)).
  intros C1 C2 Nx Na Sq.
  destruct (Rle_lt_or_eq_dec _ _ Na) as [P|Z].
  - apply Rmult_le_reg_r with (norm m (linear n A x)); [exact P|]; nra.
  - rewrite <- Z; apply Rmult_le_pos; assumption.
Qed.

Theorem lipschitz_dense : forall m n K A b,
  norm_at_most m n K A -> lipschitz n m K (fun x => vadd (linear n A x) b).
Proof. intros m n K A b H; apply lipschitz_affine; exact H. Qed.

(** What is cut off a matrix is added to its norm. *)
Lemma norm_at_most_plus : forall m n K L A B,
  norm_at_most m n K B -> norm_at_most m n L (fun i j => A i j - B i j) ->
  norm_at_most m n (K + L) A.
Proof.
  intros m n K L A B HB HD x.
  rewrite (norm_ext m _ (vadd (linear n B x) (linear n (fun i j => A i j - B i j) x))).
  - eapply Rle_trans; [apply norm_triangle|]; specialize (HB x); specialize (HD x); lra.
  - intros i _; unfold vadd, linear, dot; rewrite <- sum_plus; apply sum_ext; intros; ring.
Qed.

Lemma norm_at_most_scale : forall m n K A s,
  0 <= s -> norm_at_most m n K A -> norm_at_most m n (s * K) (fun i j => s * A i j).
Proof.
  intros m n K A s Hs H x.
  rewrite (norm_ext m _ (vscale s (linear n A x))).
  - rewrite norm_scale, (Rabs_pos_eq s Hs), Rmult_assoc.
    apply Rmult_le_compat_l; [exact Hs|apply H].
  - intros i _; unfold vscale, linear, dot; rewrite <- sum_scal; apply sum_ext; intros; ring.
Qed.

(** The sum of the integers f 0, ..., f (n - 1). *)
Fixpoint sumZ (n : nat) (f : nat -> Z) : Z :=
  match n with
  | O => 0%Z
  | S k => (sumZ k f + f k)%Z
  end.

Lemma sumZ_IZR : forall n f, IZR (sumZ n f) = sum n (fun i => IZR (f i)).
Proof. induction n as [|n IH]; intros f; simpl; [|rewrite plus_IZR, IH]; reflexivity. Qed.

Definition residualZ (m k : nat) (t : Z) (A R : nat -> nat -> Z) (j l : nat) : Z :=
  ((if Nat.eqb l j then t else 0)
   - sumZ m (fun i => A i j * A i l) - sumZ k (fun i => R i j * R i l))%Z.

Lemma residualZ_IZR : forall m k t A R j l,
  IZR (residualZ m k t A R j l)
  = residual m k (IZR t) (fun i j => IZR (A i j)) (fun i j => IZR (R i j)) j l.
Proof.
  intros; unfold residualZ, residual; rewrite !minus_IZR, !sumZ_IZR.
  f_equal; [f_equal|].
  - destruct (Nat.eqb l j); reflexivity.
  - apply sum_ext; intros; apply mult_IZR.
  - apply sum_ext; intros; apply mult_IZR.
Qed.

(** The proof in exact integers, of integer matrices: "t + |E|_F <= B^2". *)
Theorem residual_integers : forall m k n t (A R : nat -> nat -> Z) error limit,
  (0 <= error)%Z -> (0 <= limit)%Z ->
  (sumZ n (fun j => sumZ n (fun l =>
     residualZ m k t A R j l * residualZ m k t A R j l)) <= error * error)%Z ->
  (t + error <= limit * limit)%Z ->
  norm_at_most m n (IZR limit) (fun i j => IZR (A i j)).
Proof.
  intros m k n t A R error limit He Hl HE Ht.
  apply IZR_le in He; apply IZR_le in Hl; apply IZR_le in HE; apply IZR_le in Ht.
  rewrite plus_IZR, mult_IZR in Ht; rewrite mult_IZR in HE.
  apply (residual_norm m k n (IZR t) _ (fun i j => IZR (R i j))); [exact Hl|].
  eapply Rle_trans; [apply Rplus_le_compat_l|exact Ht].
  apply le_of_squares; [exact He|]; rewrite frobenius_square.
  eapply Rle_trans; [apply Req_le|exact HE].
  rewrite sumZ_IZR; apply sum_ext; intros j _; rewrite sumZ_IZR.
  apply sum_ext; intros l _; rewrite mult_IZR, residualZ_IZR; reflexivity.
Qed.

(** robustcert/check/norms.py: a matrix is [scale] (a power of two) times an integer matrix but for
    what is cut off, whose Frobenius norm is at most [cut] of the same units; and it may have been
    changed by at most [loss] in norm before. *)
Theorem residual_checker : forall m k n t (A R : nat -> nat -> Z) error limit scale cut loss B W W',
  (0 <= error)%Z -> (0 <= limit)%Z ->
  (sumZ n (fun j => sumZ n (fun l =>
     residualZ m k t A R j l * residualZ m k t A R j l)) <= error * error)%Z ->
  (t + error <= limit * limit)%Z ->
  0 <= scale ->
  frobenius m n (fun i j => W i j - scale * IZR (A i j)) <= scale * cut ->
  norm_at_most m n loss (fun i j => W' i j - W i j) ->
  scale * (IZR limit + cut) <= B - loss ->
  norm_at_most m n B W'.
Proof.
  intros m k n t A R error limit scale cut loss B W W' He Hl HE Ht Hs Hcut Hloss HB.
  assert (H := residual_integers m k n t A R error limit He Hl HE Ht).
  apply (norm_at_most_scale m n _ _ scale Hs) in H.
  assert (HW : norm_at_most m n (scale * IZR limit + scale * cut) W).
  { apply (norm_at_most_plus m n _ _ W _ H); intros x.
    eapply Rle_trans; [apply norm_at_most_frobenius|].
    apply Rmult_le_compat_r; [apply norm_nonneg|exact Hcut]. }
  intros x; eapply Rle_trans; [apply (norm_at_most_plus m n _ _ W' W HW Hloss)|].
  apply Rmult_le_compat_r; [apply norm_nonneg|lra].
Qed.
