(** The dual of the distance to where another quadratic catches up: docs/soundness.md, section 7,
    [quadric]; robustcert/certifiers/quadratic.py and robustcert/check/quadratic.py. *)

Require Import Reals Lra Lia Psatz.
From Robustcert Require Import Sums Vectors Lipschitz Margin Residual.
Open Scope R_scope.

(** |W y - o|^2 + <a, y> + b, W having [rows] rows. *)
Record quadratic := Quadratic {
  rows : nat; frame : matrix; offset : vector; slope : vector; shift : R }.

Section Dimension.

Variable n : nat.

Definition value (q : quadratic) (y : vector) : R :=
  square (rows q) (vsub (linear n (frame q) y) (offset q)) + dot n (slope q) y + shift q.

Definition gradient (q : quadratic) (y : vector) : vector := fun j =>
  2 * sum (rows q) (fun i => frame q i j * vsub (linear n (frame q) y) (offset q) i) + slope q j.

Lemma dot_transpose : forall m W w d,
  dot n (fun j => sum m (fun i => W i j * w i)) d = dot m w (linear n W d).
Proof.
  intros m W w d; unfold linear, dot.
  transitivity (sum n (fun j => sum m (fun i => w i * (W i j * d j)))).
  - apply sum_ext; intros j _; rewrite <- sum_scal_r; apply sum_ext; intros; ring.
  - rewrite sum_swap; apply sum_ext; intros i _; rewrite sum_scal; reflexivity.
Qed.

(** A quadratic around any point. *)
Lemma value_around : forall q z y,
  value q y = value q z + dot n (gradient q z) (vsub y z)
              + square (rows q) (linear n (frame q) (vsub y z)).
Proof.
  intros q z y; set (d := vsub y z); set (w := vsub (linear n (frame q) z) (offset q)).
  assert (G : dot n (gradient q z) d
              = 2 * dot (rows q) w (linear n (frame q) d) + dot n (slope q) d).
  { rewrite <- dot_transpose; unfold dot at 1 2 3; rewrite <- sum_scal, <- sum_plus.
    apply sum_ext; intros j _; unfold gradient; fold w; ring. }
  rewrite G; unfold value; fold w.
  rewrite (square_ext (rows q) (vsub (linear n (frame q) y) (offset q))
            (vadd w (linear n (frame q) d))).
  - rewrite square_add; unfold d; rewrite dot_sub_r; ring.
  - intros i _; unfold vadd, w, d; rewrite linear_sub; unfold vsub; ring.
Qed.

Section Dual.

Variables (u v : quadratic) (x : vector) (lambda e K mu : R).

Definition phi (y : vector) : R := square n (vsub y x) + lambda * (value u y - value v y - e).

Definition phi_gradient (y : vector) : vector := fun j =>
  2 * (y j - x j) + lambda * (gradient u y j - gradient v y j).

Hypothesis multiplier : 0 <= lambda.
Hypothesis norm_of_v : norm_at_most (rows v) n K (frame v).
Hypothesis convexity : 0 < mu <= 1 - lambda * (K * K).

Lemma phi_around : forall z y,
  phi y = phi z + dot n (phi_gradient z) (vsub y z) + square n (vsub y z)
          + lambda * (square (rows u) (linear n (frame u) (vsub y z))
                      - square (rows v) (linear n (frame v) (vsub y z))).
Proof.
  intros z y; unfold phi.
  rewrite (value_around u z y), (value_around v z y).
  assert (G : dot n (phi_gradient z) (vsub y z)
              = 2 * dot n (vsub z x) (vsub y z)
                + lambda * (dot n (gradient u z) (vsub y z) - dot n (gradient v z) (vsub y z))).
  { unfold dot; rewrite <- sum_minus, <- !sum_scal, <- sum_plus; apply sum_ext; intros j _.
    unfold phi_gradient, vsub; ring. }
  rewrite G, (square_ext n (vsub y x) (vadd (vsub z x) (vsub y z)))
    by (intros; unfold vadd, vsub; ring).
  rewrite square_add; ring.
Qed.

(** "phi has a Hessian of at least 2 mu", so that phi(y) >= phi(z) - |grad phi(z)|^2 / 4 mu. *)
Theorem quadratic_lower_bound : forall z y,
  phi z - square n (phi_gradient z) / (4 * mu) <= phi y.
Proof.
  intros z y; rewrite (phi_around z y).
  set (d := vsub y z); set (g := phi_gradient z).
  (* What the frame of v takes away. *)
  assert (V : square (rows v) (linear n (frame v) d) <= K * K * square n d).
  { specialize (norm_of_v d); rewrite <- !norm_square.
    generalize (norm_nonneg (rows v) (linear n (frame v) d)); intros.
    replace (K * K * (norm n d * norm n d)) with ((K * norm n d) * (K * norm n d)) by ring.
    apply Rmult_le_compat; assumption. }
  assert (U := square_nonneg (rows u) (linear n (frame u) d)).
  assert (D := square_nonneg n d).
  assert (L : - (lambda * (K * K)) * square n d
              <= lambda * (square (rows u) (linear n (frame u) d)
                           - square (rows v) (linear n (frame v) d))).
  { apply Rle_trans with (lambda * (- (K * K * square n d))); [lra|].
    apply Rmult_le_compat_l; lra. }
  (* |g / (2 root mu) + root mu d|^2 is not negative, without roots. *)
  assert (S := square_nonneg n (fun i => 1 * g i - - (2 * mu) * d i)).
  rewrite square_combination in S.
  assert (S' : 0 <= square n g / (4 * mu) + dot n g d + mu * square n d).
  { apply Rmult_le_reg_l with (4 * mu); [lra|].
    replace (4 * mu * (square n g / (4 * mu) + dot n g d + mu * square n d))
      with (square n g + 4 * mu * dot n g d + 4 * mu * mu * square n d) by (field; lra).
    lra. }
  nra.
Qed.

(** "No y with u(y) - v(y) <= e is nearer to x than the root of" that. *)
Theorem quadratic_dual : forall z y,
  value u y - value v y <= e ->
  phi z - square n (phi_gradient z) / (4 * mu) <= distance n x y * distance n x y.
Proof.
  intros z y H; eapply Rle_trans; [apply (quadratic_lower_bound z y)|].
  rewrite distance_sym; unfold distance, phi; rewrite norm_square.
  assert (0 <= lambda * (e - (value u y - value v y))) by (apply Rmult_le_pos; lra); lra.
Qed.

(** "|g| r + |W|^2 r^2 below the difference at the sample": by gradients alone. *)
Theorem quadratic_by_gradients : forall r y,
  norm n (fun j => gradient u x j - gradient v x j) * r + K * K * (r * r)
    <= value u x - value v x - e ->
  0 < value u x - value v x - e ->
  distance n x y < r -> e < value u y - value v y.
Proof.
  clear multiplier convexity mu lambda; intros r y Hr Hp Hy.
  rewrite (value_around u x y), (value_around v x y).
  set (d := vsub y x); set (g := fun j => gradient u x j - gradient v x j) in *.
  assert (Dd : norm n d = distance n x y) by (rewrite distance_sym; reflexivity).
  assert (G : dot n (gradient u x) d - dot n (gradient v x) d = dot n g d).
  { unfold dot; rewrite <- sum_minus; apply sum_ext; intros; unfold g; ring. }
  assert (V := norm_of_v d).
  generalize (square_nonneg (rows u) (linear n (frame u) d)) (norm_square (rows v) (linear n (frame v) d))
    (norm_nonneg (rows v) (linear n (frame v) d)) (cauchy_schwarz n g d)
    (Rle_abs (- dot n g d)) (norm_nonneg n g) (distance_nonneg n x y).
  rewrite Rabs_Ropp, Dd in *; intros U Sv Nv C A Ng D.
  assert (V2 : square (rows v) (linear n (frame v) d)
               <= (K * distance n x y) * (K * distance n x y)).
  { rewrite <- Sv; apply Rmult_le_compat; assumption. }
  assert (Q : norm n g * distance n x y + K * K * (distance n x y * distance n x y)
              < value u x - value v x - e).
  { assert (KK := Rle_0_sqr K); unfold Rsqr in KK.
    destruct (Rle_lt_or_eq_dec _ _ D) as [D'|D']; [|rewrite <- D' in *; lra].
    assert (norm n g * distance n x y <= norm n g * r) by (apply Rmult_le_compat_l; lra).
    destruct (Rle_lt_or_eq_dec _ _ KK) as [K'|K'].
    - assert (distance n x y * distance n x y < r * r) by (apply Rmult_le_0_lt_compat; lra).
      assert (K * K * (distance n x y * distance n x y) < K * K * (r * r))
        by (apply Rmult_lt_compat_l; assumption); lra.
    - rewrite <- K' in *; rewrite Rmult_0_l, Rplus_0_r in *.
      destruct (Rle_lt_or_eq_dec _ _ Ng) as [G'|G']; [|rewrite <- G' in *; lra].
      assert (norm n g * distance n x y < norm n g * r)
        by (apply Rmult_lt_compat_l; assumption); lra. }
  lra.
Qed.

End Dual.

(** The logit of a class is the largest of its quadratics. *)
Definition largest_of (count : nat) (pieces : nat -> quadratic) (y : vector) (logit : R) : Prop :=
  (forall p, (p < count)%nat -> value (pieces p) y <= logit)
  /\ exists p, (p < count)%nat /\ logit = value (pieces p) y.

(** How it is proved that v stays more than e below u within r of x. *)
Definition proved_distance (u v : quadratic) (x : vector) (e r : R) : Prop :=
  (exists lambda K mu z, 0 <= lambda /\ norm_at_most (rows v) n K (frame v)
     /\ 0 < mu <= 1 - lambda * (K * K)
     /\ r * r <= phi u v x lambda e z - square n (phi_gradient u v x lambda z) / (4 * mu))
  \/ (exists K, norm_at_most (rows v) n K (frame v)
     /\ norm n (fun j => gradient u x j - gradient v x j) * r + K * K * (r * r)
        <= value u x - value v x - e
     /\ 0 < value u x - value v x - e).

Lemma proved_distance_ahead : forall u v x e r y,
  proved_distance u v x e r -> distance n x y < r -> e < value u y - value v y.
Proof.
  intros u v x e r y [(lambda & K & mu & z & Hl & HK & Hmu & Hr)|(K & HK & Hr & Hp)] Hy.
  - apply Rnot_le_lt; intros H.
    assert (D := quadratic_dual u v x lambda e K mu Hl HK Hmu z y H).
    generalize (distance_nonneg n x y); intros; nra.
  - apply (quadratic_by_gradients u v x e K HK r y); assumption.
Qed.

(** The radius: u is a quadratic of the predicted class c, and every quadratic of every other class
    is proved to be farther than r. Both the real logits and the deployed ones, whose differences
    rounding changes by e at most, keep the prediction. *)
Theorem quadratic_radius : forall C c count pieces (f g : vector -> vector) x e r own,
  0 <= e -> (own < count c)%nat ->
  (forall y k, (k < C)%nat -> largest_of (count k) (pieces k) y (f y k)) -> (c < C)%nat ->
  (forall k p, (k < C)%nat -> k <> c -> (p < count k)%nat ->
     proved_distance (pieces c own) (pieces k p) x e r) ->
  (forall y k, (k < C)%nat -> distance n x y < r ->
     Rabs ((g y c - g y k) - (f y c - f y k)) <= e) ->
  forall y, distance n x y < r -> unique_largest C c (f y) /\ unique_largest C c (g y).
Proof.
  intros C c count pieces f g x e r own He Hown Hf Hc Hp Hg y Hy.
  assert (F : forall k, (k < C)%nat -> k <> c -> e < f y c - f y k).
  { intros k Hk Hkc; destruct (Hf y c Hc) as [Hu _]; destruct (Hf y k Hk) as [_ (p & Hpk & ->)].
    generalize (proved_distance_ahead _ _ x e r y (Hp k p Hk Hkc Hpk) Hy) (Hu own Hown); lra. }
  split; intros k Hk Hkc; specialize (F k Hk Hkc); [lra|].
  generalize (Hg y k Hk Hy) (Rle_abs (- (g y c - g y k - (f y c - f y k)))).
  rewrite Rabs_Ropp; lra.
Qed.

End Dimension.

(** "If these are L-Lipschitz, and D bounds the error of those computed ... growing by b per unit of
    distance, then what holds within (L + b) r + 2 D of the computed features of the sample holds
    for all inputs within r", for the real features h and the deployed ones g. *)
Theorem features_within : forall n m L D b (h g : vector -> vector) q x r (holds : vector -> Prop),
  lipschitz n m L h -> 0 <= D -> 0 <= b -> 0 < L + b -> 0 <= L ->
  distance m q (h x) <= D ->
  (forall z, distance m q z < (L + b) * r + 2 * D -> holds z) ->
  forall y, distance n x y < r ->
  holds (h y) /\ (distance m (g y) (h y) <= D + b * distance n x y -> holds (g y)).
Proof.
  intros n m L D b h g q x r holds Hh HD Hb HLb HL Hq H y Hy.
  assert (N := distance_nonneg n x y).
  specialize (Hh x y).
  generalize (distance_triangle m q (h x) (h y)); intros T.
  assert (S : (L + b) * distance n x y < (L + b) * r) by (apply Rmult_lt_compat_l; assumption).
  assert (0 <= b * distance n x y) by (apply Rmult_le_pos; assumption).
  split.
  - apply H; lra.
  - intros Hg; apply H.
    generalize (distance_triangle m q (h y) (g y)); rewrite (distance_sym m (h y) (g y)); lra.
Qed.
