(** Radii from gradients and how far they turn: docs/soundness.md, section 7, [second-order];
    robustcert/check/curvature.py and robustcert/certifiers/second_order/curvature.py. *)

Require Import Reals Lra Lia Psatz List.
From Robustcert Require Import Sums Vectors Lipschitz Activations.
Import ListNotations.
Open Scope R_scope.

(** The point at t on the line through x along d. *)
Definition along (x d : vector) (t : R) : vector := fun i => x i + t * d i.

(** G is the gradient of f. *)
Definition is_gradient (n : nat) (f : vector -> R) (G : vector -> vector) : Prop :=
  forall x d t, derivable_pt_lim (fun s => f (along x d s)) t (dot n (G (along x d t)) d).

(** "|grad f(y) - grad f(x)| <= s M(s)" for |y - x| <= s: M holds up to [reach]. *)
Definition turns_at_most (n : nat) (G : vector -> vector) (x : vector) (M reach : R) : Prop :=
  forall y, distance n x y <= reach -> distance n (G y) (G x) <= M * distance n x y.

Lemma distance_along : forall n x d s,
  norm n d = 1 -> 0 <= s -> distance n x (along x d s) = s.
Proof.
  intros n x d s Hd Hs; rewrite distance_sym; unfold distance.
  rewrite (norm_ext n _ (vscale s d)) by (intros; unfold vsub, along, vscale; ring).
  rewrite norm_scale, Hd, Rabs_pos_eq by exact Hs; ring.
Qed.

(** A function whose derivative is at least - (g + M s) falls by the integral of that at most. *)
Lemma fall_of_derivative : forall h h' g M a b,
  a <= b -> (forall s, a <= s <= b -> derivable_pt_lim h s (h' s)) ->
  (forall s, a < s < b -> - (g + M * s) <= h' s) ->
  h a - (g * (b - a) + M * (b * b - a * a) / 2) <= h b.
Proof.
  intros h h' g M a b Hab Hd Hb.
  destruct (Rle_lt_or_eq_dec _ _ Hab) as [Hlt| ->].
  2: { replace (b - b) with 0 by ring; replace (b * b - b * b) with 0 by ring; lra. }
  set (k := fun s => h s + (g * s + M / 2 * (s * s))).
  assert (D : forall s, a <= s <= b -> derivable_pt_lim k s (h' s + (g + M * s))).
  { intros s Hs; apply derivable_pt_lim_plus; [apply Hd, Hs|].
    replace (g + M * s) with (g * 1 + M / 2 * (1 * s + s * 1)) by lra.
    apply derivable_pt_lim_plus.
    - apply (derivable_pt_lim_scal id g s 1), derivable_pt_lim_id.
    - apply (derivable_pt_lim_scal (fun t => t * t) (M / 2) s (1 * s + s * 1)).
      apply (derivable_pt_lim_mult id id s 1 1); apply derivable_pt_lim_id. }
  destruct (MVT_cor2 k (fun s => h' s + (g + M * s)) a b Hlt D) as (c & Hc & Hin).
  assert (0 <= (h' c + (g + M * c)) * (b - a)).
  { apply Rmult_le_pos; [specialize (Hb c Hin); lra|lra]. }
  unfold k in Hc; lra.
Qed.

Section Margin.

(** f is a difference of two logits, K a Lipschitz constant, g at least its gradient's norm at the
    sample x. *)
Variables (n : nat) (f : vector -> R) (G : vector -> vector) (x : vector) (K g : R).

Hypothesis gradient : is_gradient n f G.
Hypothesis constant : lipschitz_real n K f.
Hypothesis constant_nonneg : 0 <= K.
Hypothesis gradient_norm : norm n (G x) <= g.

(** From [start], up to [stop], by a curvature M that holds up to there, or by K alone. *)
Inductive step := Curved (stop M : R) | Straight (stop : R).

Definition stop_of (s : step) : R := match s with Curved t _ => t | Straight t => t end.

Definition spent (start : R) (s : step) : R :=
  match s with
  | Curved stop M => g * (stop - start) + M * (stop * stop - start * start) / 2
  | Straight stop => K * (stop - start)
  end.

Definition step_holds (start : R) (s : step) : Prop :=
  start <= stop_of s
  /\ match s with Curved stop M => 0 <= M /\ turns_at_most n G x M stop | Straight _ => True end.

Fixpoint steps_hold (start : R) (steps : list step) : Prop :=
  match steps with
  | [] => True
  | s :: rest => step_holds start s /\ steps_hold (stop_of s) rest
  end.

Fixpoint all_spent (start : R) (steps : list step) : R :=
  match steps with
  | [] => 0
  | s :: rest => spent start s + all_spent (stop_of s) rest
  end.

Fixpoint last_stop (start : R) (steps : list step) : R :=
  match steps with
  | [] => start
  | s :: rest => last_stop (stop_of s) rest
  end.

Lemma gradient_norm_nonneg : 0 <= g.
Proof. eapply Rle_trans; [apply (norm_nonneg n (G x))|exact gradient_norm]. Qed.

Lemma spent_mono : forall start s t, 0 <= start -> start <= t <= stop_of s -> step_holds start s ->
  0 <= spent start s
  /\ spent start (match s with Curved _ M => Curved t M | Straight _ => Straight t end)
     <= spent start s.
Proof.
  intros start [stop M|stop] t H0 Ht [_ H]; simpl in *; generalize gradient_norm_nonneg; intros.
  - destruct H as [HM _].
    assert (start * start <= t * t) by (apply Rmult_le_compat; lra).
    assert (t * t <= stop * stop) by (apply Rmult_le_compat; lra).
    assert (0 <= M * (stop * stop - start * start)) by (apply Rmult_le_pos; lra).
    assert (M * (t * t - start * start) <= M * (stop * stop - start * start))
      by (apply Rmult_le_compat_l; lra).
    assert (0 <= g * (stop - start)) by (apply Rmult_le_pos; lra).
    assert (g * (t - start) <= g * (stop - start)) by (apply Rmult_le_compat_l; lra).
    split; lra.
  - split; [apply Rmult_le_pos; lra|apply Rmult_le_compat_l; lra].
Qed.

Lemma all_spent_nonneg : forall steps start,
  0 <= start -> steps_hold start steps -> 0 <= all_spent start steps.
Proof.
  induction steps as [|s rest IH]; intros start H0 H; simpl in *; [lra|].
  destruct H as [Hs H]; assert (T : start <= stop_of s) by apply Hs.
  destruct (spent_mono start s (stop_of s) H0 (conj T (Rle_refl _)) Hs) as [P _].
  assert (S0 : 0 <= stop_of s) by lra; specialize (IH _ S0 H); lra.
Qed.

(** f sees the first n values only. *)
Lemma same_place : forall y z, distance n y z = 0 -> f y = f z.
Proof.
  intros y z Z; generalize (constant y z); rewrite Z, Rmult_0_r; intros H.
  generalize (Rabs_pos (f y - f z)); intros P.
  destruct (Req_dec (f y - f z) 0) as [F|F]; [lra|].
  apply Rabs_no_R0 in F; lra.
Qed.

(** Along a ray of unit speed, one step or a part of it. *)
Lemma step_fall : forall d start s t, norm n d = 1 -> 0 <= start -> step_holds start s ->
  start <= t <= stop_of s ->
  f (along x d start) - spent start s <= f (along x d t).
Proof.
  intros d start s t Hd H0 Hs Ht.
  destruct (spent_mono start s t H0 Ht Hs) as [_ Mono].
  apply Rle_trans with (f (along x d start) - spent start
    (match s with Curved _ M => Curved t M | Straight _ => Straight t end)); [lra|].
  destruct s as [stop M|stop]; destruct Hs as [Hss Hs]; simpl in *.
  - destruct Hs as [HM HG].
    apply (fall_of_derivative (fun s => f (along x d s)) (fun s => dot n (G (along x d s)) d));
      [lra|intros; apply gradient|].
    intros s Hs; set (y := along x d s).
    assert (Dy : distance n x y = s) by (apply distance_along; [exact Hd|lra]).
    specialize (HG y); rewrite Dy in HG.
    assert (HG' : distance n (G y) (G x) <= M * s) by (apply HG; lra).
    generalize (cauchy_schwarz n (G y) d) (Rle_abs (- dot n (G y) d)).
    rewrite Hd, Rabs_Ropp; intros C A.
    assert (norm n (G y) <= norm n (G x) + distance n (G y) (G x)).
    { unfold distance; rewrite (norm_ext n (G y) (vadd (G x) (vsub (G y) (G x)))) at 1
        by (intros; unfold vadd, vsub; ring); apply norm_triangle. }
    lra.
  - generalize (constant (along x d start) (along x d t))
      (Rle_abs (f (along x d start) - f (along x d t))).
    assert (Dt : distance n (along x d start) (along x d t) = t - start).
    { rewrite distance_sym; unfold distance.
      rewrite (norm_ext n _ (vscale (t - start) d))
        by (intros; unfold vsub, along, vscale; ring).
      rewrite norm_scale, Hd, Rabs_pos_eq by lra; ring. }
    rewrite Dt; lra.
Qed.

Lemma steps_fall : forall d steps start t, norm n d = 1 -> 0 <= start -> steps_hold start steps ->
  start <= t <= last_stop start steps ->
  f (along x d start) - all_spent start steps <= f (along x d t).
Proof.
  intros d steps; induction steps as [|s rest IH]; intros start t Hd H0 Hs Ht; simpl in *.
  - replace t with start by lra; lra.
  - destruct Hs as [Hs Hrest]; assert (Hstop : start <= stop_of s) by apply Hs.
    assert (Rest : 0 <= all_spent (stop_of s) rest) by (apply all_spent_nonneg; [lra|exact Hrest]).
    destruct (Rle_or_lt t (stop_of s)) as [L|L].
    + generalize (step_fall d start s t Hd H0 Hs (conj (proj1 Ht) L)); lra.
    + generalize (step_fall d start s (stop_of s) Hd H0 Hs (conj Hstop (Rle_refl _))).
      assert (H0' : 0 <= stop_of s) by lra.
      generalize (IH (stop_of s) t Hd H0' Hrest (conj (Rlt_le _ _ L) (proj2 Ht))); lra.
Qed.

Lemma reached_by_ray : forall y, 0 < distance n x y ->
  exists d, norm n d = 1 /\ f (along x d (distance n x y)) = f y.
Proof.
  intros y Hy; set (s := distance n x y) in *.
  exists (fun i => / s * vsub y x i); split.
  - change (fun i => / s * vsub y x i) with (vscale (/ s) (vsub y x)).
    assert (0 < / s) by (apply Rinv_0_lt_compat, Hy).
    rewrite norm_scale, Rabs_pos_eq by lra.
    fold (distance n y x); rewrite distance_sym; fold s; field; lra.
  - apply same_place; unfold distance; rewrite (norm_ext n _ (fun _ => 0)); [apply norm_zero|].
    intros i _; unfold vsub, along; field; lra.
Qed.

(** "Along a ray f falls no faster than G(s) = min(K, |grad f(x)| + s M(s))": on the way to r, for
    any partition, by what is spent at most, so that a margin above that stays positive. *)
Theorem anchored_curvature : forall steps r,
  0 <= r -> steps_hold 0 steps -> r <= last_stop 0 steps ->
  forall y, distance n x y <= r -> f x - all_spent 0 steps <= f y.
Proof.
  intros steps r Hr Hs Hlast y Hy.
  assert (Start : forall d, f (along x d 0) = f x).
  { intros d; apply same_place; unfold distance.
    rewrite (norm_ext n _ (fun _ => 0)); [apply norm_zero|].
    intros i _; unfold vsub, along; ring. }
  destruct (Rle_lt_or_eq_dec _ _ (distance_nonneg n x y)) as [P|Z].
  - destruct (reached_by_ray y P) as (d & Hd & <-); rewrite <- (Start d).
    apply steps_fall; try assumption; lra.
  - rewrite <- (same_place x y) by (symmetry; exact Z).
    generalize (all_spent_nonneg steps 0 (Rle_refl 0) Hs); lra.
Qed.

(** The radius of the second-order certifier. *)
Theorem anchored_radius : forall steps r,
  0 <= r -> steps_hold 0 steps -> r <= last_stop 0 steps -> all_spent 0 steps < f x ->
  forall y, distance n x y <= r -> 0 < f y.
Proof.
  intros steps r Hr Hs Hlast Hsp y Hy.
  generalize (anchored_curvature steps r Hr Hs Hlast y Hy); lra.
Qed.

(** One curvature M up to a reach of at least r: r = 2 m / (g + sqrt(g^2 + 2 M m)) solves
    g r + M r^2 / 2 = m, and the ball is open. *)
Theorem anchored_radius_closed_form : forall M reach,
  0 <= M -> turns_at_most n G x M reach -> 0 < f x ->
  let r := 2 * f x / (g + sqrt (g * g + 2 * M * f x)) in
  0 < g + sqrt (g * g + 2 * M * f x) -> r <= reach ->
  forall y, distance n x y < r -> 0 < f y.
Proof.
  intros M reach HM HT Hf r Hden Hr y Hy.
  assert (D0 := distance_nonneg n x y); set (s := distance n x y) in *.
  assert (G0 := gradient_norm_nonneg).
  set (q := sqrt (g * g + 2 * M * f x)) in *.
  assert (Mf : 0 <= M * f x) by (apply Rmult_le_pos; lra).
  assert (Q : q * q = g * g + 2 * M * f x) by (apply sqrt_sqrt; nra).
  assert (Root : g * r + M * (r * r) / 2 = f x).
  { assert (E : r * (g + q) = 2 * f x) by (unfold r; field; lra).
    apply Rmult_eq_reg_r with ((g + q) * (g + q)); [|nra].
    replace ((g * r + M * (r * r) / 2) * ((g + q) * (g + q)))
      with (g * (r * (g + q)) * (g + q) + M * ((r * (g + q)) * (r * (g + q))) / 2) by field.
    rewrite E.
    replace (f x * ((g + q) * (g + q))) with (f x * (g * g + 2 * (g * q) + q * q)) by ring.
    rewrite Q; field. }
  assert (Spent : all_spent 0 [Curved s M] < f x).
  { simpl; assert (r0 : 0 < r) by lra.
    assert (s * s < r * r) by (apply Rmult_le_0_lt_compat; lra).
    assert (Z : g * s + M * (s * s) / 2 < g * r + M * (r * r) / 2); [|lra].
    destruct (Rle_lt_or_eq_dec _ _ HM) as [M0|M0].
    - assert (M * (s * s) < M * (r * r)) by (apply Rmult_lt_compat_l; assumption).
      assert (g * s <= g * r) by (apply Rmult_le_compat_l; lra); lra.
    - rewrite <- M0 in *; destruct (Rle_lt_or_eq_dec _ _ G0) as [g0|g0].
      + assert (g * s < g * r) by (apply Rmult_lt_compat_l; assumption); lra.
      + rewrite <- g0 in Root; lra. }
  apply (anchored_radius [Curved s M] s D0).
  - split; [split; [exact D0|split; [exact HM|]]|exact I].
    intros z Hz; apply HT; apply Rle_trans with s; lra.
  - simpl; lra.
  - exact Spent.
  - unfold s; lra.
Qed.

End Margin.

(** ** How far a gradient turns *)

(** "Exchanging one factor of the product of Jacobians at a time": an operation pulls gradients back
    at x by [at_x], at y by [at_y], whose norm is at most N; at_y and at_x differ by [change] on the
    gradient u_l that comes from x. The first operation comes first. *)
Record pullback := Pullback {
  inputs : nat; outputs : nat; at_x : vector -> vector; at_y : vector -> vector;
  N : R; change : R }.

Fixpoint backward (pull : pullback -> vector -> vector) (l : list pullback) (v : vector) : vector :=
  match l with
  | [] => v
  | T :: rest => pull T (backward pull rest v)
  end.

Fixpoint pullbacks_hold (n : nat) (l : list pullback) (v : vector) : Prop :=
  match l with
  | [] => True
  | T :: rest =>
      inputs T = n /\ 0 <= N T /\ lipschitz (outputs T) n (N T) (at_y T)
      /\ (let u := backward at_x rest v in distance n (at_y T u) (at_x T u) <= change T)
      /\ pullbacks_hold (outputs T) rest v
  end.

(** sum_l N_1 ... N_{l-1} change_l. *)
Fixpoint turn (l : list pullback) : R :=
  match l with
  | [] => 0
  | T :: rest => change T + N T * turn rest
  end.

Theorem gradient_turns : forall l n v,
  pullbacks_hold n l v -> distance n (backward at_y l v) (backward at_x l v) <= turn l.
Proof.
  induction l as [|T rest IH]; intros n v H; simpl in *; [rewrite distance_same; lra|].
  destruct H as (_ & HN & HL & Hc & Hrest); specialize (IH _ _ Hrest).
  eapply Rle_trans; [apply (distance_triangle n _ (at_y T (backward at_x rest v)))|].
  specialize (HL (backward at_y rest v) (backward at_x rest v)).
  assert (N T * distance (outputs T) (backward at_y rest v) (backward at_x rest v)
          <= N T * turn rest) by (apply Rmult_le_compat_l; assumption).
  lra.
Qed.

(** An activation whose units have derivatives p_k that change by at most c_k times the change of the
    unit, on a gradient u: by max_k |u_k| c_k times the distance that its input moves. *)
Theorem unit_turns : forall n (p : nat -> R -> R) (c u z z' : vector) top,
  (forall k, (k < n)%nat -> Rabs (p k (z' k) - p k (z k)) <= c k * Rabs (z' k - z k)) ->
  (forall k, (k < n)%nat -> Rabs (u k) * c k <= top) -> 0 <= top ->
  distance n (fun k => p k (z' k) * u k) (fun k => p k (z k) * u k) <= top * distance n z' z.
Proof.
  intros n p c u z z' top Hp Ht H0; unfold distance.
  rewrite <- (Rabs_pos_eq top H0), <- norm_scale; apply norm_le; intros k Hk.
  unfold vsub, vscale; rewrite Rabs_mult, (Rabs_pos_eq top H0).
  replace (p k (z' k) * u k - p k (z k) * u k) with (u k * (p k (z' k) - p k (z k))) by ring.
  rewrite Rabs_mult; specialize (Hp k Hk); specialize (Ht k Hk).
  apply Rle_trans with (Rabs (u k) * (c k * Rabs (z' k - z k))).
  - apply Rmult_le_compat_l; [apply Rabs_pos|exact Hp].
  - rewrite <- Rmult_assoc; apply Rmult_le_compat_r; [apply Rabs_pos|exact Ht].
Qed.

(** The same for an activation that acts on groups of its inputs: every group turns by at most top
    times what it moves. *)
Theorem group_turns : forall k h (u u' z z' : vector) top,
  0 <= top ->
  (forall i, (i < k)%nat ->
     distance h (group h u' i) (group h u i) <= top * distance h (group h z' i) (group h z i)) ->
  distance (k * h) u' u <= top * distance (k * h) z' z.
Proof.
  intros k h u u' z z' top H0 H; apply le_of_squares.
  { apply Rmult_le_pos; [exact H0|apply distance_nonneg]. }
  replace (top * distance (k * h) z' z * (top * distance (k * h) z' z))
    with (top * top * (distance (k * h) z' z * distance (k * h) z' z)) by ring.
  unfold distance; rewrite !norm_square, !square_groups, <- sum_scal.
  apply sum_le; intros i Hi; specialize (H i Hi).
  change (group h (vsub u' u) i) with (vsub (group h u' i) (group h u i)).
  change (group h (vsub z' z) i) with (vsub (group h z' i) (group h z i)).
  rewrite <- !norm_square; unfold distance in H.
  apply Rle_trans with (top * norm h (vsub (group h z' i) (group h z i))
                        * (top * norm h (vsub (group h z' i) (group h z i)))).
  - apply Rmult_le_compat; try exact H; apply norm_nonneg.
  - apply Req_le; ring.
Qed.
