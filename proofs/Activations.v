(** Constants of activations: docs/soundness.md, section 3, "Activations state their constant";
    the proofs stand in the docstrings of robustcert/activations. *)

Require Import Reals Lra Lia Psatz Arith.
From Robustcert Require Import Sums Vectors Lipschitz.
Open Scope R_scope.

(** ** Entry by entry *)

Definition entrywise (s : nat -> R -> R) (x : vector) : vector := fun i => s i (x i).

Lemma lipschitz_entrywise : forall n K s,
  0 <= K -> (forall i a b, (i < n)%nat -> Rabs (s i a - s i b) <= K * Rabs (a - b)) ->
  lipschitz n n K (entrywise s).
Proof.
  intros n K s HK H x y; unfold distance.
  rewrite <- (Rabs_pos_eq K HK), <- norm_scale; apply norm_le; intros i Hi.
  unfold vsub, vscale, entrywise; rewrite Rabs_mult, (Rabs_pos_eq K HK); apply H, Hi.
Qed.

Ltac by_cases := unfold Rmax, Rmin, Rabs in *;
  repeat match goal with
  | |- context [Rle_dec ?a ?b] => destruct (Rle_dec a b)
  | |- context [Rcase_abs ?a] => destruct (Rcase_abs a)
  | H : context [Rle_dec ?a ?b] |- _ => destruct (Rle_dec a b)
  end; try lra.

Definition relu (a : R) : R := Rmax a 0.

Theorem lipschitz_relu : forall n, lipschitz n n 1 (entrywise (fun _ => relu)).
Proof. intros n; apply lipschitz_entrywise; [lra|]; intros; unfold relu; by_cases. Qed.

Definition leaky_relu (slope a : R) : R := if Rlt_dec a 0 then slope * a else a.

Theorem lipschitz_leaky_relu : forall n slope,
  lipschitz n n (Rmax 1 (Rabs slope)) (entrywise (fun _ => leaky_relu slope)).
Proof.
  intros n slope; generalize (Rmax_l 1 (Rabs slope)) (Rmax_r 1 (Rabs slope)); intros H1 H2.
  apply lipschitz_entrywise; [lra|]; intros _ a b _; unfold leaky_relu.
  assert (S : - Rmax 1 (Rabs slope) <= slope <= Rmax 1 (Rabs slope)).
  { generalize (Rle_abs slope) (Rle_abs (- slope)); rewrite Rabs_Ropp; lra. }
  set (M := Rmax 1 (Rabs slope)) in *; clearbody M.
  destruct (Rlt_dec a 0), (Rlt_dec b 0); unfold Rabs;
    repeat match goal with |- context [Rcase_abs ?t] => destruct (Rcase_abs t) end; nra.
Qed.

(** A slope in [-1, 1] makes it 1-Lipschitz. *)
Theorem lipschitz_leaky_relu_1 : forall n slope,
  -1 <= slope <= 1 -> lipschitz n n 1 (entrywise (fun _ => leaky_relu slope)).
Proof.
  intros n slope H; apply (lipschitz_weaken n n (Rmax 1 (Rabs slope))).
  - by_cases.
  - apply lipschitz_leaky_relu.
Qed.

Theorem lipschitz_abs : forall n, lipschitz n n 1 (entrywise (fun _ => Rabs)).
Proof. intros n; apply lipschitz_entrywise; [lra|]; intros; by_cases. Qed.

(** Slope 1, then -1 between the corners, then 1; the corners need not be in order. *)
Definition n_activation (low high a : R) : R := a - 2 * Rmin (Rmax a low) high.

Theorem lipschitz_n_activation : forall n (low high : vector),
  lipschitz n n 1 (entrywise (fun i => n_activation (low i) (high i))).
Proof.
  intros n low high; apply lipschitz_entrywise; [lra|]; intros; unfold n_activation; by_cases.
Qed.

(** ** Group by group *)

(** Groups of g neighbours, each mapped to p values by its own function. *)
Definition group (g : nat) (x : vector) (k : nat) : vector := fun i => x (k * g + i)%nat.

Definition groupwise (g p : nat) (h : nat -> vector -> vector) (x : vector) : vector :=
  fun i => h (i / p)%nat (group g x (i / p)%nat) (i mod p)%nat.

Lemma square_groups : forall k g x, square (k * g) x = sum k (fun i => square g (group g x i)).
Proof. intros; unfold square; rewrite sum_groups; reflexivity. Qed.

Lemma group_groupwise : forall g p h x k i,
  (i < p)%nat -> group p (groupwise g p h x) k i = h k (group g x k) i.
Proof.
  intros g p h x k i Hi; unfold group at 1, groupwise.
  assert (D : ((k * p + i) / p = k)%nat).
  { rewrite Nat.div_add_l, Nat.div_small by lia; lia. }
  assert (M : ((k * p + i) mod p = i)%nat).
  { rewrite Nat.add_comm, Nat.mod_add, Nat.mod_small by lia; reflexivity. }
  rewrite D, M; reflexivity.
Qed.

Theorem lipschitz_groupwise : forall k g p K h,
  0 <= K -> (forall i, (i < k)%nat -> lipschitz g p K (h i)) ->
  lipschitz (k * g) (k * p) K (groupwise g p h).
Proof.
  intros k g p K h HK H x y; apply le_of_squares.
  { apply Rmult_le_pos; [exact HK|apply distance_nonneg]. }
  replace (K * distance (k * g) x y * (K * distance (k * g) x y))
    with (K * K * (distance (k * g) x y * distance (k * g) x y)) by ring.
  unfold distance; rewrite !norm_square, !square_groups, <- sum_scal.
  apply sum_le; intros i Hi; specialize (H i Hi (group g x i) (group g y i)).
  rewrite (square_ext p _ (vsub (h i (group g x i)) (h i (group g y i)))).
  - rewrite <- norm_square.
    replace (square g (group g (vsub x y) i))
      with (square g (vsub (group g x i) (group g y i))) by reflexivity.
    rewrite <- norm_square.
    unfold distance in H; generalize (norm_nonneg p (vsub (h i (group g x i)) (h i (group g y i))));
      intros; apply Rle_trans with
      (K * norm g (vsub (group g x i) (group g y i)) * (K * norm g (vsub (group g x i) (group g y i)))).
    + apply Rmult_le_compat; assumption.
    + apply Req_le; ring.
  - intros j Hj; unfold vsub at 2.
    rewrite <- !(group_groupwise g p h) by exact Hj; reflexivity.
Qed.

(** ** Householder *)

(** A group on the negative side of the mirror with normal v is reflected, whatever the length of
    v: z - 2 min(v'z, 0) / v'v v. *)
Definition householder (g : nat) (v z : vector) : vector :=
  fun i => z i - 2 * Rmin (dot g v z) 0 / square g v * v i.

Lemma householder_nonexpansive : forall g v,
  0 < square g v -> lipschitz g g 1 (householder g v).
Proof.
  intros g v Hv x y; rewrite Rmult_1_l; apply le_of_squares; [apply distance_nonneg|].
  unfold distance; rewrite !norm_square.
  set (c := Rmin (dot g v x) 0 - Rmin (dot g v y) 0).
  rewrite (square_ext g _ (fun i => 1 * vsub x y i - (2 * c / square g v) * v i))
    by (intros; unfold householder, vsub, c; field; lra).
  rewrite square_combination, (dot_comm g (vsub x y) v), dot_sub_r.
  set (w := dot g v x - dot g v y).
  assert (B : 0 <= c * (w - c)) by (unfold c, w; by_cases; nra).
  clearbody c w; apply Rminus_le.
  replace (1 * 1 * square g (vsub x y) - 2 * 1 * (2 * c / square g v) * w
           + 2 * c / square g v * (2 * c / square g v) * square g v - square g (vsub x y))
    with (- (4 * (c * (w - c)) / square g v)) by (field; lra).
  assert (0 <= 4 * (c * (w - c)) / square g v); [|lra].
  apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat, Hv].
Qed.

(** Householder on pairs (g = 2), or larger groups, each with its own mirror. *)
Theorem lipschitz_householder : forall k g (v : nat -> vector),
  (forall i, (i < k)%nat -> 0 < square g (v i)) ->
  lipschitz (k * g) (k * g) 1 (groupwise g g (fun i => householder g (v i))).
Proof.
  intros k g v H; apply lipschitz_groupwise; [lra|].
  intros i Hi; apply householder_nonexpansive, H, Hi.
Qed.

(** ** Norms of groups *)

(** sqrt(|z|^2 + tau^2) - tau, whatever tau; with tau = 0, the norm itself. *)
Definition group_norm (g : nat) (tau : R) (z : vector) : vector :=
  fun _ => sqrt (square g z + tau * tau) - tau.

Lemma group_norm_nonexpansive : forall g tau, lipschitz g 1 1 (group_norm g tau).
Proof.
  intros g tau x y; rewrite Rmult_1_l.
  unfold distance at 1, norm, square at 1; simpl; rewrite Rplus_0_l.
  fold (Rsqr (vsub (group_norm g tau x) (group_norm g tau y) 0%nat)); rewrite sqrt_Rsqr_abs.
  unfold vsub, group_norm.
  (* One dimension more, whose entry is tau. *)
  set (extend := fun (z : vector) i => if Nat.ltb i g then z i else tau).
  assert (Inside : forall z i, (i < g)%nat -> extend z i = z i).
  { intros z i Hi; unfold extend; destruct (Nat.ltb_spec i g); [reflexivity|lia]. }
  assert (Last : forall z, extend z g = tau) by (intros; unfold extend; now rewrite Nat.ltb_irrefl).
  assert (N : forall z, norm (S g) (extend z) = sqrt (square g z + tau * tau)).
  { intros z; unfold norm; f_equal; change (square (S g) (extend z))
      with (square g (extend z) + extend z g * extend z g).
    rewrite Last, (square_ext g (extend z) z) by (intros; apply Inside; assumption).
    reflexivity. }
  assert (D : forall a b, distance (S g) (extend a) (extend b) = distance g a b).
  { intros a b; unfold distance, norm; f_equal.
    change (square (S g) (vsub (extend a) (extend b)))
      with (square g (vsub (extend a) (extend b))
            + vsub (extend a) (extend b) g * vsub (extend a) (extend b) g).
    rewrite (square_ext g _ (vsub a b)) by (intros; unfold vsub; rewrite !Inside; auto).
    unfold vsub at 2 3; rewrite !Last; ring. }
  assert (T : forall a b, norm (S g) (extend a) - norm (S g) (extend b) <= distance g a b).
  { intros a b; rewrite <- D; unfold distance.
    generalize (norm_triangle (S g) (extend b) (vsub (extend a) (extend b))).
    rewrite (norm_ext (S g) (vadd _ _) (extend a)) by (intros; unfold vadd, vsub; ring); lra. }
  generalize (T x y) (T y x); rewrite (distance_sym g y x), !N; intros.
  apply Rabs_le; lra.
Qed.

Theorem lipschitz_group_norm : forall k g (tau : vector),
  lipschitz (k * g) (k * 1) 1 (groupwise g 1 (fun i => group_norm g (tau i))).
Proof.
  intros k g tau; apply lipschitz_groupwise; [lra|].
  intros i _; apply group_norm_nonexpansive.
Qed.
