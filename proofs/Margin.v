(** The margin theorem: docs/soundness.md, sections 1, 2 and 4; robustcert/margins.py. *)

Require Import Reals Lra Lia Psatz List Arith.
From Robustcert Require Import Sums Vectors Lipschitz.
Import ListNotations.
Open Scope R_scope.

(** "logit c is larger than every other logit" (the claim, section 1), of C logits. *)
Definition unique_largest (C c : nat) (logits : vector) : Prop :=
  forall j, (j < C)%nat -> j <> c -> logits j < logits c.

(** K c j bounds the Lipschitz constant of f_c - f_j, for every rival j. *)
Definition pairwise (n C c : nat) (K : nat -> R) (f : vector -> vector) : Prop :=
  forall j, (j < C)%nat -> j <> c -> lipschitz_real n (K j) (fun x => f x c - f x j).

(** Section 2, "If |x' - x| < r then (f_c - f_j)(x') > (f_c - f_j)(x) - K_cj r". A constant of 0
    puts no limit on r: the product is compared, not the quotient. *)
Theorem margin_open_ball : forall n C c f K x r,
  pairwise n C c K f ->
  (forall j, (j < C)%nat -> j <> c -> 0 < f x c - f x j /\ K j * r <= f x c - f x j) ->
  forall y, distance n x y < r -> unique_largest C c (f y).
Proof.
  intros n C c f K x r HK Hm y Hy j Hj Hjc.
  destruct (Hm j Hj Hjc) as [Hp Hr].
  specialize (HK j Hj Hjc x y); simpl in HK.
  generalize (distance_nonneg n x y) (Rle_abs (f x c - f x j - (f y c - f y j))); intros D A.
  assert (K j * distance n x y < f x c - f x j); [|lra].
  destruct (Rle_or_lt (K j) 0); [|nra].
  apply Rle_lt_trans with 0; [|exact Hp]; nra.
Qed.

(** The least of the values that q takes on the rivals of c; 0 if there are none. *)
Definition rivals (C c : nat) : list nat := filter (fun j => negb (Nat.eqb j c)) (seq 0 C).

Definition least (l : list R) : R :=
  match l with
  | [] => 0
  | a :: rest => fold_right Rmin a rest
  end.

Definition least_over_rivals (C c : nat) (q : nat -> R) : R := least (map q (rivals C c)).

Lemma fold_min_le : forall l a b, In b (a :: l) -> fold_right Rmin a l <= b.
Proof.
  induction l as [|h l IH]; intros a b [H|H]; simpl.
  - lra.
  - destruct H.
  - eapply Rle_trans; [apply Rmin_r|apply IH; left; exact H].
  - destruct H as [H|H]; [subst h; apply Rmin_l|].
    eapply Rle_trans; [apply Rmin_r|apply IH; right; exact H].
Qed.

Lemma least_over_rivals_le : forall C c q j,
  (j < C)%nat -> j <> c -> least_over_rivals C c q <= q j.
Proof.
  intros C c q j Hj Hjc; unfold least_over_rivals.
  assert (H : In (q j) (map q (rivals C c))).
  { apply in_map, filter_In; split; [apply in_seq; lia|].
    apply Bool.negb_true_iff, Nat.eqb_neq, Hjc. }
  destruct (map q (rivals C c)) as [|a l]; [destruct H|apply fold_min_le, H].
Qed.

(** r = min_j (f_c - f_j)(x) / K_cj, the minimum over all rivals. *)
Theorem margin_radius : forall n C c f K x,
  pairwise n C c K f ->
  (forall j, (j < C)%nat -> j <> c -> 0 < f x c - f x j /\ 0 < K j) ->
  forall y, distance n x y < least_over_rivals C c (fun j => (f x c - f x j) / K j) ->
  unique_largest C c (f y).
Proof.
  intros n C c f K x HK Hm y Hy.
  apply (margin_open_ball n C c f K x _ HK) with (2 := Hy).
  intros j Hj Hjc; destruct (Hm j Hj Hjc) as [Hp HKj]; split; [exact Hp|].
  apply Rmult_le_reg_r with (/ K j); [apply Rinv_0_lt_compat, HKj|].
  replace (K j * _ * / K j)
    with (least_over_rivals C c (fun j => (f x c - f x j) / K j)) by (field; lra).
  apply (least_over_rivals_le C c (fun j => (f x c - f x j) / K j) j Hj Hjc).
Qed.

(** "With a dense head of rows w_i on a backbone of constant L, K_cj = L |w_c - w_j|". *)
Theorem pairwise_head : forall n m C c L g W b,
  lipschitz n m L g ->
  pairwise n C c (fun j => L * distance m (W c) (W j)) (fun x => vadd (linear m W (g x)) b).
Proof.
  intros n m C c L g W b Hg j _ _ x y; unfold vadd, linear.
  replace (_ - _) with (dot m (vsub (W c) (W j)) (vsub (g x) (g y))).
  - eapply Rle_trans; [apply cauchy_schwarz|].
    fold (distance m (W c) (W j)) (distance m (g x) (g y)).
    generalize (Hg x y) (distance_nonneg m (W c) (W j)); intros; nra.
  - unfold dot.
    rewrite (sum_ext m _ (fun i => (W c i * g x i - W j i * g x i) - (W c i * g y i - W j i * g y i)))
      by (intros; unfold vsub; ring).
    rewrite sum_minus, !sum_minus; ring.
Qed.

(** Logits of constant L, whatever computes them: root 2 L for every pair. *)
Theorem pairwise_logits : forall n C c L f,
  (c < C)%nat -> lipschitz n C L f -> pairwise n C c (fun _ => sqrt 2 * L) f.
Proof.
  intros n C c L f Hc Hf j Hj _ x y.
  replace (f x c - f x j - (f y c - f y j)) with (vsub (f x) (f y) c - vsub (f x) (f y) j)
    by (unfold vsub; ring).
  eapply Rle_trans; [apply (coordinate_difference C); assumption|].
  rewrite Rmult_assoc; apply Rmult_le_compat_l; [apply sqrt_pos|apply Hf].
Qed.

(** Section 4: the logits g of a deployed network are within alpha + beta d of the real ones f, in
    l2, at every representable point at distance d. The certifier's own evaluation at the sample, z,
    may be another one (its sums have another order) and is within alpha. With the margins of z,

      r = min_j (m_j - 2 sqrt 2 alpha) / (K_cj + sqrt 2 beta),

    and both functions keep the prediction: f everywhere on the open ball, g at representable
    points. *)
Definition computed_within (n C : nat) (f g : vector -> vector) (representable : vector -> Prop)
    (alpha beta : R) (x : vector) (r : R) : Prop :=
  forall y, representable y -> distance n x y < r ->
  distance C (g y) (f y) <= alpha + beta * distance n x y.

(** Margins of two vectors of logits that are [off] apart. *)
Lemma margins_apart : forall C u v c j off,
  (c < C)%nat -> (j < C)%nat -> distance C u v <= off ->
  Rabs ((u c - u j) - (v c - v j)) <= sqrt 2 * off.
Proof.
  intros C u v c j off Hc Hj H.
  replace (u c - u j - (v c - v j)) with (vsub u v c - vsub u v j) by (unfold vsub; ring).
  eapply Rle_trans; [apply (coordinate_difference C); assumption|].
  apply Rmult_le_compat_l; [apply sqrt_pos|exact H].
Qed.

Theorem margin_rounding : forall n C c f g z (representable : vector -> Prop) K alpha beta x r,
  (c < C)%nat -> pairwise n C c K f -> 0 <= alpha -> 0 <= beta ->
  distance C z (f x) <= alpha ->
  computed_within n C f g representable alpha beta x r ->
  (forall j, (j < C)%nat -> j <> c ->
     2 * sqrt 2 * alpha < z c - z j
     /\ (K j + sqrt 2 * beta) * r <= z c - z j - 2 * sqrt 2 * alpha) ->
  forall y, distance n x y < r ->
  unique_largest C c (f y) /\ (representable y -> unique_largest C c (g y)).
Proof.
  intros n C c f g z rep K alpha beta x r Hc HK Ha Hb Hz He Hr y Hy.
  assert (D0 := distance_nonneg n x y).
  assert (S0 : 0 < sqrt 2) by (apply sqrt_lt_R0; lra).
  assert (F : forall j, (j < C)%nat -> j <> c ->
    sqrt 2 * (alpha + beta * distance n x y) < f y c - f y j).
  { intros j Hj Hjc; destruct (Hr j Hj Hjc) as [Hm Hk].
    generalize (margins_apart C z (f x) c j alpha Hc Hj Hz)
      (Rle_abs (z c - z j - (f x c - f x j))); intros A A'.
    generalize (HK j Hj Hjc x y) (Rle_abs (f x c - f x j - (f y c - f y j))); simpl; intros B B'.
    assert ((K j + sqrt 2 * beta) * distance n x y < z c - z j - 2 * sqrt 2 * alpha); [|lra].
    destruct (Rle_or_lt (K j + sqrt 2 * beta) 0).
    - apply Rle_lt_trans with 0; [|lra]; nra.
    - eapply Rlt_le_trans; [|exact Hk]; apply Rmult_lt_compat_l; assumption. }
  assert (E0 : 0 <= alpha + beta * distance n x y) by nra.
  split.
  - intros j Hj Hjc; specialize (F j Hj Hjc); nra.
  - intros Hrep j Hj Hjc; specialize (F j Hj Hjc).
    generalize (margins_apart C (g y) (f y) c j _ Hc Hj (He y Hrep Hy))
      (Rle_abs (- (g y c - g y j - (f y c - f y j)))).
    rewrite Rabs_Ropp; intros; lra.
Qed.

(** The same with the quotients themselves. *)
Theorem margin_rounding_radius : forall n C c f g z (representable : vector -> Prop) K alpha beta x,
  let r := least_over_rivals C c
    (fun j => (z c - z j - 2 * sqrt 2 * alpha) / (K j + sqrt 2 * beta)) in
  (c < C)%nat -> pairwise n C c K f -> 0 <= alpha -> 0 <= beta ->
  distance C z (f x) <= alpha ->
  computed_within n C f g representable alpha beta x r ->
  (forall j, (j < C)%nat -> j <> c -> 0 < K j) -> 0 < r ->
  forall y, distance n x y < r ->
  unique_largest C c (f y) /\ (representable y -> unique_largest C c (g y)).
Proof.
  intros n C c f g z rep K alpha beta x r Hc HK Ha Hb Hz He Hpos Hr.
  apply (margin_rounding n C c f g z rep K alpha beta x r); try assumption.
  intros j Hj Hjc.
  assert (S0 : 0 < sqrt 2) by (apply sqrt_lt_R0; lra).
  assert (P : 0 < K j + sqrt 2 * beta) by (specialize (Hpos j Hj Hjc); nra).
  assert (Q : (K j + sqrt 2 * beta) * r <= z c - z j - 2 * sqrt 2 * alpha).
  { apply Rmult_le_reg_r with (/ (K j + sqrt 2 * beta)); [apply Rinv_0_lt_compat, P|].
    replace ((K j + sqrt 2 * beta) * r * / (K j + sqrt 2 * beta)) with r by (field; lra).
    apply (least_over_rivals_le C c
      (fun j => (z c - z j - 2 * sqrt 2 * alpha) / (K j + sqrt 2 * beta)) j Hj Hjc). }
  split; [|exact Q]; nra.
Qed.

(** "An input that the arithmetic cannot represent is rounded first, and what that moves it is
    taken off r." *)
Theorem margin_moved_input : forall n C c f x x' moved r,
  distance n x x' <= moved ->
  (forall y, distance n x' y < r -> unique_largest C c (f y)) ->
  forall y, distance n x y < r - moved -> unique_largest C c (f y).
Proof.
  intros n C c f x x' moved r Hm H y Hy; apply H.
  generalize (distance_triangle n x' x y); rewrite (distance_sym n x' x); lra.
Qed.

(** robustcert/check/radii.py: with the real margin m and the error D + beta d of the deployed
    network, "within r the deployed margin is positive if K r + sqrt 2 (D + beta r) < m". *)
Theorem margin_checker : forall n C c f g (representable : vector -> Prop) K D beta x r,
  (c < C)%nat -> pairwise n C c K f -> 0 <= beta ->
  computed_within n C f g representable D beta x r ->
  (forall j, (j < C)%nat -> j <> c ->
     0 <= K j /\ K j * r + sqrt 2 * (D + beta * r) < f x c - f x j) ->
  forall y, representable y -> distance n x y < r -> unique_largest C c (g y).
Proof.
  intros n C c f g rep K D beta x r Hc HK Hb He Hm y Hrep Hy j Hj Hjc.
  destruct (Hm j Hj Hjc) as [K0 Hr].
  assert (S0 : 0 < sqrt 2) by (apply sqrt_lt_R0; lra).
  generalize (HK j Hj Hjc x y) (Rle_abs (f x c - f x j - (f y c - f y j))); simpl; intros B B'.
  assert (E : Rabs ((g y c - g y j) - (f y c - f y j)) <= sqrt 2 * (D + beta * distance n x y)).
  { apply (margins_apart C); try assumption; apply He; assumption. }
  generalize (Rle_abs (- (g y c - g y j - (f y c - f y j)))); rewrite Rabs_Ropp; intros A.
  assert (K j * distance n x y <= K j * r) by (apply Rmult_le_compat_l; lra).
  assert (sqrt 2 * (D + beta * distance n x y) <= sqrt 2 * (D + beta * r))
    by (apply Rmult_le_compat_l; [lra|]; nra).
  lra.
Qed.

(** The same where something else than a constant says how far a margin can fall within r, such as
    a gradient and its curvature (Curvature.v). *)
Theorem margin_fall : forall n C c f g (representable : vector -> Prop) D beta x r,
  (c < C)%nat -> 0 <= D -> 0 <= beta ->
  computed_within n C f g representable D beta x r ->
  (forall j, (j < C)%nat -> j <> c -> exists fall,
     (forall y, distance n x y < r -> f x c - f x j - fall <= f y c - f y j)
     /\ fall + sqrt 2 * (D + beta * r) < f x c - f x j) ->
  forall y, distance n x y < r ->
  unique_largest C c (f y) /\ (representable y -> unique_largest C c (g y)).
Proof.
  intros n C c f g rep D beta x r Hc HD Hb He Hm y Hy.
  assert (S0 : 0 < sqrt 2) by (apply sqrt_lt_R0; lra).
  assert (D0 := distance_nonneg n x y).
  assert (0 <= D + beta * distance n x y <= D + beta * r) by nra.
  assert (sqrt 2 * (D + beta * distance n x y) <= sqrt 2 * (D + beta * r))
    by (apply Rmult_le_compat_l; lra).
  assert (0 <= sqrt 2 * (D + beta * distance n x y)) by (apply Rmult_le_pos; lra).
  split.
  - intros j Hj Hjc; destruct (Hm j Hj Hjc) as (fall & Hf & Hr); specialize (Hf y Hy); lra.
  - intros Hrep j Hj Hjc; destruct (Hm j Hj Hjc) as (fall & Hf & Hr); specialize (Hf y Hy).
    assert (E : Rabs ((g y c - g y j) - (f y c - f y j)) <= sqrt 2 * (D + beta * distance n x y)).
    { apply (margins_apart C); try assumption; apply He; assumption. }
    generalize (Rle_abs (- (g y c - g y j - (f y c - f y j)))); rewrite Rabs_Ropp; lra.
Qed.
