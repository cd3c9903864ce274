(** The residual lemma with E evaluated in floating point: docs/soundness.md, section 3; Note
    [residual] of robustcert/norms/proof.py, for real matrices. *)

Require Import Reals Lra Lia Psatz Arith.
From Robustcert Require Import Sums Vectors Lipschitz Residual Rounding DenseRounding.
Open Scope R_scope.

(** A'A, and |A|'|A|. *)
Definition gram (m : nat) (A : matrix) : matrix := fun j l => sum m (fun i => A i j * A i l).

Lemma gamma_succ : forall k u, 0 <= u -> INR (k + 1) * u < 1 ->
  gamma k u + u * (1 + gamma k u) <= gamma (k + 1) u.
Proof.
  intros k u Hu Hk; rewrite plus_INR in Hk; simpl in Hk.
  assert (K := pos_INR k); assert (0 <= INR k * u) by (apply Rmult_le_pos; assumption).
  assert (P : 0 < 1 - INR k * u) by lra; assert (Q : 0 < 1 - (INR k + 1) * u) by lra.
  unfold gamma; rewrite plus_INR; simpl INR.
  apply Rmult_le_reg_r with ((1 - INR k * u) * (1 - (INR k + 1) * u));
    [apply Rmult_lt_0_compat; assumption|].
  replace ((INR k * u / (1 - INR k * u) + u * (1 + INR k * u / (1 - INR k * u)))
           * ((1 - INR k * u) * (1 - (INR k + 1) * u)))
    with ((INR k * u + u) * (1 - (INR k + 1) * u)) by (field; lra).
  replace ((INR k + 1) * u / (1 - (INR k + 1) * u) * ((1 - INR k * u) * (1 - (INR k + 1) * u)))
    with ((INR k + 1) * u * (1 - INR k * u)) by (field; lra).
  nra.
Qed.

(** Entries of a matrix in absolute value, between vectors in absolute value. *)
Definition absolute_form (n : nat) (B : matrix) (x : vector) : R :=
  sum n (fun j => sum n (fun l => Rabs (x j) * (B j l * Rabs (x l)))).

Lemma form_le : forall n B C x,
  (forall j l, (j < n)%nat -> (l < n)%nat -> B j l <= C j l) ->
  absolute_form n B x <= absolute_form n C x.
Proof.
  intros n B C x H; apply sum_le; intros j Hj; apply sum_le; intros l Hl.
  apply Rmult_le_compat_l; [apply Rabs_pos|].
  apply Rmult_le_compat_r; [apply Rabs_pos|apply H; assumption].
Qed.

Lemma form_plus : forall n B C x,
  absolute_form n (fun j l => B j l + C j l) x = absolute_form n B x + absolute_form n C x.
Proof.
  intros; unfold absolute_form; rewrite <- sum_plus; apply sum_ext; intros j _.
  rewrite <- sum_plus; apply sum_ext; intros; ring.
Qed.

Lemma form_scal : forall n c B x,
  absolute_form n (fun j l => c * B j l) x = c * absolute_form n B x.
Proof.
  intros; unfold absolute_form; rewrite <- sum_scal; apply sum_ext; intros j _.
  rewrite <- sum_scal; apply sum_ext; intros; ring.
Qed.

Lemma form_of_linear : forall n E x,
  - dot n x (linear n E x) <= absolute_form n (fun j l => Rabs (E j l)) x.
Proof.
  intros n E x; eapply Rle_trans; [apply Rle_abs|]; rewrite Rabs_Ropp.
  eapply Rle_trans; [apply sum_abs|]; apply sum_le; intros j _.
  unfold linear, dot; rewrite Rabs_mult, sum_scal.
  apply Rmult_le_compat_l; [apply Rabs_pos|].
  eapply Rle_trans; [apply sum_abs|]; apply Req_le, sum_ext; intros; apply Rabs_mult.
Qed.

Lemma form_frobenius : forall n D x,
  absolute_form n (fun j l => Rabs (D j l)) x <= frobenius n n D * square n x.
Proof.
  intros n D x.
  assert (F : frobenius n n (absolute D) = frobenius n n D).
  { unfold frobenius, square, absolute; f_equal; apply sum_ext; intros; apply sum_ext; intros.
    symmetry; apply Rsqr_abs. }
  set (a := fun i => Rabs (x i)).
  assert (E : absolute_form n (fun j l => Rabs (D j l)) x = dot n a (linear n (absolute D) a)).
  { unfold absolute_form, dot, linear, dot; apply sum_ext; intros j _; rewrite sum_scal.
    reflexivity. }
  assert (Na : norm n a = norm n x) by apply norm_abs.
  generalize (cauchy_schwarz n a (linear n (absolute D) a))
    (Rle_abs (dot n a (linear n (absolute D) a))) (norm_at_most_frobenius n n (absolute D) a)
    (norm_nonneg n a) (norm_square n x).
  rewrite E, F, Na; intros; nra.
Qed.

Lemma form_gram : forall m n A x,
  absolute_form n (gram m (absolute A)) x <= sum m (fun i => square n (A i)) * square n x.
Proof.
  intros m n A x; set (a := fun i => Rabs (x i)).
  assert (E : absolute_form n (gram m (absolute A)) x = square m (linear n (absolute A) a)).
  { rewrite <- gram_form; unfold absolute_form, dot at 1, linear, dot.
    apply sum_ext; intros j _; rewrite sum_scal; reflexivity. }
  rewrite E, <- norm_square.
  assert (S : square n a = square n x).
  { unfold square, a; apply sum_ext; intros; symmetry; apply Rsqr_abs. }
  assert (F : frobenius m n (absolute A) * frobenius m n (absolute A)
              = sum m (fun i => square n (A i))).
  { rewrite frobenius_square; apply sum_ext; intros i _; unfold square, absolute.
    apply sum_ext; intros; symmetry; apply Rsqr_abs. }
  rewrite <- F, <- S, <- norm_square.
  generalize (norm_at_most_frobenius m n (absolute A) a) (norm_nonneg m (linear n (absolute A) a)).
  intros H P; replace (_ * _ * (_ * _))
    with ((frobenius m n (absolute A) * norm n a) * (frobenius m n (absolute A) * norm n a)) by ring.
  apply Rmult_le_compat; assumption.
Qed.

Lemma gram_absolute_nonneg : forall m A j l, 0 <= gram m (absolute A) j l.
Proof. intros; apply sum_nonneg; intros; apply Rmult_le_pos; apply Rabs_pos. Qed.

(** G is the computed A'A, T = fl(t I - G), H1 and H2 are the computed parts of F'F, over the rows
    before a block (chosen by [before], entry by entry) and the others, P = fl(T - H1) and
    D = fl(P - H2). *)
Theorem residual_rounding : forall m k n u t A F G T H1 H2 P D before x,
  0 <= u -> u < 1 -> INR (m + 1) * u < 1 -> INR (k + 1) * u < 1 ->
  let part (b : bool) (j l i : nat) (value : R) := if Bool.eqb (before j l i) b then value else 0 in
  (forall j l, (j < n)%nat -> (l < n)%nat ->
     Rabs (G j l - gram m A j l) <= gamma m u * gram m (absolute A) j l
     /\ (if Nat.eqb l j then Rabs (T j l - (t - G j l)) <= u * Rabs (t - G j l)
         else T j l = - G j l)
     /\ Rabs (H1 j l - sum k (fun i => part true j l i (F i j * F i l)))
        <= gamma k u * sum k (fun i => part true j l i (Rabs (F i j) * Rabs (F i l)))
     /\ Rabs (H2 j l - sum k (fun i => part false j l i (F i j * F i l)))
        <= gamma k u * sum k (fun i => part false j l i (Rabs (F i j) * Rabs (F i l)))
     /\ Rabs (P j l - (T j l - H1 j l)) <= u * Rabs (P j l)
     /\ Rabs (D j l - (P j l - H2 j l)) <= u * Rabs (D j l)) ->
  square m (linear n A x)
  <= (t + u * Rabs t + frobenius n n D / ((1 - u) * (1 - u))
      + gamma (m + 1) u * sum m (fun i => square n (A i))
      + gamma (k + 1) u * sum k (fun i => square n (F i))) * square n x.
Proof.
  intros m k n u t A F G T H1 H2 P D before x U0 U1 Um Uk part H.
  assert (Gm : 0 <= gamma m u).
  { apply gamma_nonneg; [exact U0|]; rewrite plus_INR in Um; simpl in Um; lra. }
  assert (Gk : 0 <= gamma k u).
  { apply gamma_nonneg; [exact U0|]; rewrite plus_INR in Uk; simpl in Uk; lra. }
  generalize (gamma_succ m u U0 Um) (gamma_succ k u U0 Uk); intros Sm Sk.
  set (E := residual m k t A F).
  (* Every entry of E, but for u |t| on the diagonal. *)
  set (C := fun j l => ((if Nat.eqb l j then u * Rabs t else 0) + (1 + u) * (1 + u) * Rabs (D j l))
    + (gamma (m + 1) u * gram m (absolute A) j l + gamma (k + 1) u * gram k (absolute F) j l)).
  assert (Entry : forall j l, (j < n)%nat -> (l < n)%nat -> Rabs (E j l) <= C j l).
  { intros j l Hj Hl; destruct (H j l Hj Hl) as (HG & HS & HH1 & HH2 & HP & HD).
    set (a := gram m A j l) in *; set (aa := gram m (absolute A) j l) in *.
    assert (AA : 0 <= aa) by apply gram_absolute_nonneg.
    set (r1 := sum k (fun i => part true j l i (F i j * F i l))) in *.
    set (r2 := sum k (fun i => part false j l i (F i j * F i l))) in *.
    set (rr1 := sum k (fun i => part true j l i (Rabs (F i j) * Rabs (F i l)))) in *.
    set (rr2 := sum k (fun i => part false j l i (Rabs (F i j) * Rabs (F i l)))) in *.
    assert (R12 : gram k F j l = r1 + r2).
    { unfold gram, r1, r2; rewrite <- sum_plus; apply sum_ext; intros i _; unfold part.
      destruct (before j l i); simpl; ring. }
    assert (RR12 : gram k (absolute F) j l = rr1 + rr2).
    { unfold gram, rr1, rr2; rewrite <- sum_plus; apply sum_ext; intros i _.
      unfold part, absolute; destruct (before j l i); simpl; ring. }
    assert (P1 : 0 <= rr1).
    { apply sum_nonneg; intros i _; unfold part; destruct (Bool.eqb _ _); [|lra].
      apply Rmult_le_pos; apply Rabs_pos. }
    assert (P2 : 0 <= rr2).
    { apply sum_nonneg; intros i _; unfold part; destruct (Bool.eqb _ _); [|lra].
      apply Rmult_le_pos; apply Rabs_pos. }
    assert (R2 : Rabs r2 <= rr2).
    { eapply Rle_trans; [apply sum_abs|]; apply sum_le; intros i _; unfold part.
      destruct (Bool.eqb _ _); [rewrite Rabs_mult; lra|rewrite Rabs_R0; lra]. }
    assert (A1 : Rabs a <= aa).
    { eapply Rle_trans; [apply sum_abs|]; apply sum_le; intros i _; unfold absolute.
      rewrite Rabs_mult; lra. }
    assert (EE : E j l = (if Nat.eqb l j then t else 0) - a - (r1 + r2)).
    { rewrite <- R12; reflexivity. }
    set (d := Rabs (D j l)) in *; assert (D0 : 0 <= d) by apply Rabs_pos.
    (* |H2| and |P|. *)
    assert (BH2 : Rabs (H2 j l) <= (1 + gamma k u) * rr2).
    { replace (H2 j l) with ((H2 j l - r2) + r2) by ring.
      eapply Rle_trans; [apply Rabs_triang|]; lra. }
    assert (BP : Rabs (P j l) <= (1 + u) * d + (1 + gamma k u) * rr2).
    { replace (P j l) with (- (D j l - (P j l - H2 j l)) + (D j l + H2 j l)) by ring.
      eapply Rle_trans; [apply Rabs_triang|]; rewrite Rabs_Ropp.
      generalize (Rabs_triang (D j l) (H2 j l)); fold d; lra. }
    assert (uP : u * Rabs (P j l) <= u * ((1 + u) * d + (1 + gamma k u) * rr2))
      by (apply Rmult_le_compat_l; assumption).
    set (s := if Nat.eqb l j then t else 0).
    assert (BS : Rabs (s - G j l - T j l)
                 <= (if Nat.eqb l j then u * Rabs t else 0) + u * ((1 + gamma m u) * aa)).
    { assert (Q : 0 <= u * ((1 + gamma m u) * aa)).
      { apply Rmult_le_pos; [exact U0|apply Rmult_le_pos; lra]. }
      unfold s; destruct (Nat.eqb l j).
      - rewrite <- Rabs_Ropp; replace (- (t - G j l - T j l)) with (T j l - (t - G j l)) by ring.
        eapply Rle_trans; [exact HS|].
        assert (BG : Rabs (G j l) <= (1 + gamma m u) * aa).
        { replace (G j l) with ((G j l - a) + a) by ring.
          eapply Rle_trans; [apply Rabs_triang|]; lra. }
        assert (TG : Rabs (t - G j l) <= Rabs t + (1 + gamma m u) * aa).
        { unfold Rminus; eapply Rle_trans; [apply Rabs_triang|]; rewrite Rabs_Ropp; lra. }
        rewrite <- Rmult_plus_distr_l; apply Rmult_le_compat_l; assumption.
      - rewrite HS; replace (0 - G j l - - G j l) with 0 by ring; rewrite Rabs_R0; lra. }
    (* E as the sum of the differences. *)
    assert (Sum : E j l = (s - G j l - T j l) + (- (P j l - (T j l - H1 j l)))
      + (- (D j l - (P j l - H2 j l))) + D j l + (G j l - a) + (H1 j l - r1) + (H2 j l - r2)).
    { rewrite EE; unfold s; ring. }
    assert (Tri : Rabs (E j l) <= Rabs (s - G j l - T j l) + Rabs (P j l - (T j l - H1 j l))
      + Rabs (D j l - (P j l - H2 j l)) + d + Rabs (G j l - a) + Rabs (H1 j l - r1)
      + Rabs (H2 j l - r2)).
    { rewrite Sum, <- (Rabs_Ropp (P j l - (T j l - H1 j l))),
        <- (Rabs_Ropp (D j l - (P j l - H2 j l))).
      do 6 (eapply Rle_trans; [apply Rabs_triang|]; apply Rplus_le_compat_r); apply Rle_refl. }
    assert (Km : gamma m u * aa + u * ((1 + gamma m u) * aa) <= gamma (m + 1) u * aa).
    { rewrite <- Rmult_assoc, <- Rmult_plus_distr_r; apply Rmult_le_compat_r; assumption. }
    assert (Kk : gamma k u * (rr1 + rr2) + u * ((1 + gamma k u) * rr2)
                 <= gamma (k + 1) u * (rr1 + rr2)).
    { apply Rle_trans with ((gamma k u + u * (1 + gamma k u)) * (rr1 + rr2)).
      - assert (0 <= u * ((1 + gamma k u) * rr1)).
        { apply Rmult_le_pos; [exact U0|apply Rmult_le_pos; lra]. }
        lra.
      - apply Rmult_le_compat_r; [lra|exact Sk]. }
    unfold C; rewrite RR12; fold aa d; lra. }
  (* The form. *)
  generalize (residual_form m k n t A F x) (square_nonneg k (linear n F x)); fold E; intros Form SF.
  generalize (form_of_linear n E x) (form_le n (fun j l => Rabs (E j l)) C x Entry); intros F1 F2.
  unfold C in F2; rewrite !form_plus, !form_scal in F2.
  assert (Diagonal : absolute_form n (fun j l => if Nat.eqb l j then u * Rabs t else 0) x
                     = u * Rabs t * square n x).
  { unfold absolute_form, square; rewrite <- sum_scal; apply sum_ext; intros j Hj.
    rewrite (sum_ext n _ (fun l => if Nat.eqb l j then Rabs (x j) * (u * Rabs t * Rabs (x l)) else 0)).
    - rewrite (sum_single n j (fun l => Rabs (x j) * (u * Rabs t * Rabs (x l))) Hj).
      generalize (Rsqr_abs (x j)); unfold Rsqr; intros Sq; rewrite Sq; ring.
    - intros l _; destruct (Nat.eqb l j); ring. }
  rewrite Diagonal in F2.
  assert (X0 := square_nonneg n x).
  assert (FD : (1 + u) * (1 + u) * absolute_form n (fun j l => Rabs (D j l)) x
               <= frobenius n n D / ((1 - u) * (1 - u)) * square n x).
  { apply Rle_trans with ((1 + u) * (1 + u) * (frobenius n n D * square n x)).
    - apply Rmult_le_compat_l; [nra|apply form_frobenius].
    - unfold Rdiv; replace (frobenius n n D * / ((1 - u) * (1 - u)) * square n x)
        with (/ ((1 - u) * (1 - u)) * (frobenius n n D * square n x)) by ring.
      apply Rmult_le_compat_r.
      + apply Rmult_le_pos; [apply frobenius_nonneg|exact X0].
      + apply Rmult_le_reg_r with ((1 - u) * (1 - u)); [apply Rmult_lt_0_compat; lra|].
        rewrite Rinv_l by (apply Rgt_not_eq, Rmult_lt_0_compat; lra).
        assert (Q : 0 <= (1 + u) * (1 - u) <= 1) by nra; nra. }
  assert (G1m : 0 <= gamma (m + 1) u) by (apply gamma_nonneg; assumption).
  assert (G1k : 0 <= gamma (k + 1) u) by (apply gamma_nonneg; assumption).
  generalize (Rmult_le_compat_l _ _ _ G1m (form_gram m n A x))
    (Rmult_le_compat_l _ _ _ G1k (form_gram k n F x)); intros FA FF.
  lra.
Qed.
