(** Chords of a derivative that rises and is steepest at 0: Note [anchored curvature] of
    robustcert/certifiers/second_order/curvature.py; robustcert/check/activation_curvature.py. *)

Require Import Reals Lra Lia Psatz.
From Robustcert Require Import Activations.
Open Scope R_scope.

(** p rises from -c to c, symmetrically, and ever less steeply with the distance to 0. *)
Definition odd (p : R -> R) : Prop := forall t, p (- t) = - p t.
Definition rising (p : R -> R) : Prop := forall s t, s <= t -> p s <= p t.
Definition flattening (p : R -> R) : Prop := forall a b c,
  0 <= a -> a <= b -> b <= c -> (p c - p b) * (b - a) <= (p b - p a) * (c - b).

(** "No chord from |t| is steeper than (p(|t|) - p(|t| - d)) / min(d, |t|) for changes up to d." *)
Definition chord (p : R -> R) (t d : R) : R := (p (Rabs t) - p (Rabs t - d)) / Rmin d (Rabs t).

Section Chord.

Variable p : R -> R.
Hypothesis symmetric : odd p.
Hypothesis rises : rising p.
Hypothesis flattens : flattening p.

Lemma at_zero : p 0 = 0.
Proof. generalize (symmetric 0); rewrite Ropp_0; lra. Qed.

Lemma chord_right : forall t d s, 0 < t -> 0 < d -> Rabs (s - t) <= d ->
  Rabs (p s - p t) * Rmin d t <= (p t - p (t - d)) * Rabs (s - t).
Proof.
  intros t d s Ht Hd Hs.
  assert (Z := at_zero).
  assert (Rise : 0 <= p t - p (t - d)) by (generalize (rises (t - d) t); lra).
  destruct (Rle_or_lt t s) as [Up|Down].
  - rewrite !Rabs_pos_eq in * by (generalize (rises t s Up); lra).
    destruct (Rle_or_lt d t) as [D|D]; [rewrite Rmin_left by lra|rewrite Rmin_right by lra].
    + generalize (flattens (t - d) t s); intros F; assert (0 <= t - d) by lra.
      specialize (F H (Rlt_le _ _ (ltac:(lra) : t - d < t)) Up).
      replace (t - (t - d)) with d in F by ring; lra.
    + generalize (flattens 0 t s (Rle_refl 0) (Rlt_le _ _ Ht) Up); rewrite Z; intros F.
      assert (p (t - d) <= 0) by (rewrite <- Z; apply rises; lra).
      assert (0 <= - p (t - d) * (s - t)) by (apply Rmult_le_pos; lra); lra.
  - assert (Rs : p s <= p t) by (apply rises; lra).
    rewrite (Rabs_left1 (p s - p t)), (Rabs_left1 (s - t)) in * by lra.
    destruct (Rle_or_lt d t) as [D|D]; [rewrite Rmin_left by lra|rewrite Rmin_right by lra].
    + generalize (flattens (t - d) s t); intros F.
      assert (A1 : 0 <= t - d) by lra; assert (A2 : t - d <= s) by lra.
      specialize (F A1 A2 (Rlt_le _ _ Down)); lra.
    + destruct (Rle_or_lt 0 s) as [S0|S0].
      * generalize (flattens 0 s t (Rle_refl 0) S0 (Rlt_le _ _ Down)); rewrite Z; intros F.
        assert (p (t - d) <= 0) by (rewrite <- Z; apply rises; lra).
        assert (0 <= - p (t - d) * (t - s)) by (apply Rmult_le_pos; lra); lra.
      * assert (L : p (t - d) <= p s) by (apply rises; lra).
        apply Rle_trans with ((p t - p (t - d)) * t).
        -- apply Rmult_le_compat_r; lra.
        -- apply Rmult_le_compat_l; lra.
Qed.

Theorem chord_bound : forall t d s, t <> 0 -> 0 < d -> Rabs (s - t) <= d ->
  Rabs (p s - p t) <= chord p t d * Rabs (s - t).
Proof.
  intros t d s Ht Hd Hs.
  assert (T : 0 < Rabs t) by (apply Rabs_pos_lt, Ht).
  assert (M : 0 < Rmin d (Rabs t)) by (apply Rmin_pos; assumption).
  assert (B : Rabs (p s - p t) * Rmin d (Rabs t) <= (p (Rabs t) - p (Rabs t - d)) * Rabs (s - t)).
  { destruct (Rle_or_lt 0 t) as [P|P].
    - rewrite (Rabs_pos_eq t P) in *; apply chord_right; assumption.
    - rewrite (Rabs_left t P) in *.
      generalize (chord_right (- t) d (- s) T Hd).
      replace (- s - - t) with (- (s - t)) by ring.
      rewrite !symmetric, Rabs_Ropp; replace (- p s - - p t) with (- (p s - p t)) by ring.
      rewrite Rabs_Ropp; intros C; specialize (C Hs).
      generalize (symmetric t); intros E; lra. }
  unfold chord; apply Rmult_le_reg_r with (Rmin d (Rabs t)); [exact M|].
  replace ((p (Rabs t) - p (Rabs t - d)) / Rmin d (Rabs t) * Rabs (s - t) * Rmin d (Rabs t))
    with ((p (Rabs t) - p (Rabs t - d)) * Rabs (s - t)) by (field; lra).
  exact B.
Qed.

End Chord.
