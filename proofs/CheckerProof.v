(** What the answer [true] of the verified checker means. *)

Require Import Reals Lra Lia Psatz ZArith List Bool Arith.
From Robustcert Require Import Sums Vectors Lipschitz Margin Residual Activations GroupSort.
From Robustcert Require Import Checker Grid CheckerNorm CheckerLayers.
Import ListNotations.
Open Scope R_scope.

(** ** The claim *)

(** Steps as operations of Lipschitz.v, with the numbers of their outputs. *)
Fixpoint operations (n : nat) (l : list step) : list operation :=
  match l with
  | [] => []
  | s :: rest =>
      Operation (bound_of s) (outputs n (body s)) (real (body s))
      :: operations (outputs n (body s)) rest
  end.

(** The network as a real-valued function: function R of a certificate. *)
Definition logits (nw : network) (x : vector) : vector :=
  real (body (head nw)) (Lipschitz.evaluate (operations (inputs nw) (steps nw)) x).

(** The class of the row is the unique largest logit at its input, and at every real vector at a
    distance below its radius. *)
Definition claim (nw : network) (r : row) : Prop :=
  let x := vec (input_den r) (input r) in
  unique_largest (classes nw) (class r) (logits nw x)
  /\ forall y, distance (inputs nw) x y < IZR (radius r) / IZR (radius_den r) ->
     unique_largest (classes nw) (class r) (logits nw y).

(** ** Constants of pairs *)

Lemma operations_width : forall l n, Lipschitz.width n (operations n l) = Checker.width n l.
Proof. induction l as [|s l IH]; intros n; simpl; [reflexivity|apply IH]. Qed.

Lemma operations_bounded : forall l n, check_steps n l = true -> bounded n (operations n l).
Proof.
  induction l as [|s l IH]; intros n H; simpl in *; [exact I|].
  apply andb_prop in H; destruct H as [Hs Hl].
  destruct (check_step_lipschitz n s Hs); repeat split; auto.
Qed.

Lemma bound_den_positive : forall n s, check_step n s = true -> (0 < bound_den s)%Z.
Proof.
  intros n s H; unfold check_step in H; apply andb_prop in H; destruct H as [H _].
  split_bools; assumption.
Qed.

Lemma operations_product : forall l n, check_steps n l = true ->
  (0 < bound_dens l)%Z /\ product (operations n l) = IZR (bounds l) / IZR (bound_dens l).
Proof.
  induction l as [|s l IH]; intros n H; simpl in *; [split; [lia|field]|].
  apply andb_prop in H; destruct H as [Hs Hl]; apply bound_den_positive in Hs.
  destruct (IH _ Hl) as [P E]; split; [nia|].
  apply IZR_lt in Hs; apply IZR_lt in P; rewrite E, !mult_IZR; unfold bound_of; field; lra.
Qed.

Lemma distance_rows : forall den a b n, (0 < den)%Z -> length a = n -> length b = n ->
  distance n (vec den a) (vec den b) * distance n (vec den a) (vec den b)
  = IZR (Checker.square (map2 Z.sub a b)) / (IZR den * IZR den).
Proof.
  intros den a b n Hd Ha Hb; apply IZR_lt in Hd; unfold distance; rewrite norm_square.
  rewrite (square_sum _ n) by (rewrite map2_length; lia).
  unfold Vectors.square, Rdiv; rewrite <- sum_scal_r; apply sum_ext; intros i Hi.
  rewrite map2_nth, minus_IZR by lia; unfold vsub, vec; field; lra.
Qed.

Lemma pairs_sound : forall nw c, check_network nw = true -> (c < classes nw)%nat ->
  (0 < pairs_den nw)%Z
  /\ pairwise (inputs nw) (classes nw) c (fun j => IZR (pair nw c j) / IZR (pairs_den nw)) (logits nw).
Proof.
  intros nw c H Hc; unfold check_network in H; split_bools.
  rename H into Hsteps, H2 into Hhead, H1 into Hdense, H0 into Hpairs.
  destruct (operations_product _ _ Hsteps) as [Pd Pl].
  destruct (lipschitz_network _ _ (operations_bounded _ _ Hsteps)) as [L0 L].
  rewrite operations_width in L; set (m := Checker.width (inputs nw) (steps nw)) in *.
  unfold check_pairs in Hpairs; split_bools; rename H into Hpd, H0 into Hall.
  split; [exact Hpd|]; intros j Hj Hjc.
  rewrite forallb_forall in Hall; specialize (Hall c ltac:(apply in_seq; lia)).
  rewrite forallb_forall in Hall; specialize (Hall j ltac:(apply in_seq; lia)).
  unfold check_pair in Hall; apply orb_prop in Hall; destruct Hall as [E|Hall];
    [apply Nat.eqb_eq in E; lia|]; split_bools; rename H into K0, H0 into HK.
  unfold logits, classes, head_rows, head_den, is_dense in *.
  unfold check_step in Hhead; apply andb_prop in Hhead; destruct Hhead as [_ Hhead].
  destruct (body (head nw)) as [inp den rows bias| | | | | | |]; try discriminate; split_bools.
  cbn [real]; subst inp.
  assert (Lc := all_of_length_nth m rows c ltac:(assumption) Hc).
  assert (Lj := all_of_length_nth m rows j ltac:(assumption) Hj).
  assert (Hden : (0 < den)%Z) by assumption.
  intros x y; eapply Rle_trans;
    [apply (pairwise_head (inputs nw) m (length rows) c _ _ (mat den rows) (vec den bias) L j Hj Hjc)|].
  apply Rmult_le_compat_r; [apply distance_nonneg|].
  apply le_of_squares; [apply quotient_nonneg; assumption|].
  assert (D := distance_rows den (nth c rows []) (nth j rows []) m Hden Lc Lj).
  replace (product _ * distance m _ _ * _) with (product (operations (inputs nw) (steps nw))
    * product (operations (inputs nw) (steps nw))
    * (distance m (vec den (nth c rows [])) (vec den (nth j rows []))
       * distance m (vec den (nth c rows [])) (vec den (nth j rows []))))
    by (unfold mat; ring).
  rewrite D, Pl; apply IZR_le in HK; rewrite !mult_IZR in HK.
  apply IZR_lt in Hden; apply IZR_lt in Hpd; apply IZR_lt in Pd.
  set (g := IZR (Checker.square _)) in *; set (l := IZR (bounds _)) in *.
  set (p := IZR (pair nw c j)) in *; set (dl := IZR (bound_dens _)) in *.
  set (e := IZR den) in *; set (q := IZR (pairs_den nw)) in *.
  apply Rmult_le_reg_r with (dl * dl * (e * e) * (q * q)); [repeat apply Rmult_lt_0_compat; lra|].
  replace (l / dl * (l / dl) * (g / (e * e)) * (dl * dl * (e * e) * (q * q)))
    with (l * q * (l * q) * g) by (field; lra).
  replace (p / q * (p / q) * (dl * dl * (e * e) * (q * q)))
    with (p * dl * e * (p * dl * e)) by (field; lra).
  exact HK.
Qed.

(** ** Logits *)

Lemma evaluate_tracks : forall d most l n v st,
  (0 < d)%Z -> check_steps n l = true -> tracks d n v st ->
  tracks d (Checker.width n l) (Lipschitz.evaluate (operations n l) v)
    (Checker.evaluate d (map (prepare_step most) l) st).
Proof.
  intros d most; induction l as [|s l IH]; intros n v st Hd H T; simpl in *; [exact T|].
  apply andb_prop in H; destruct H as [Hs Hl].
  apply IH; [exact Hd|exact Hl|apply apply_tracks; assumption].
Qed.

Lemma evaluate_last : forall d ps p st,
  Checker.evaluate d (ps ++ [p]) st = apply d p (Checker.evaluate d ps st).
Proof. induction ps as [|q ps IH]; intros p st; simpl; [reflexivity|apply IH]. Qed.

Lemma logits_track : forall d most nw v st,
  (0 < d)%Z -> check_network nw = true -> tracks d (inputs nw) v st ->
  tracks d (classes nw) (logits nw v) (Checker.evaluate d (ready (prepare nw (d, most))) st).
Proof.
  intros d most nw v st Hd H T; unfold check_network in H; split_bools.
  rename H into Hsteps, H2 into Hhead, H1 into Hdense.
  unfold prepare; cbn [ready]; rewrite map_app; cbn [map]; rewrite evaluate_last.
  assert (T' := evaluate_tracks d most _ _ _ _ Hd Hsteps T).
  apply (apply_tracks d most _ _ _ _ Hd Hhead) in T'.
  unfold logits; unfold classes, head_rows; unfold is_dense in Hdense.
  destruct (body (head nw)) eqn:B; try discriminate; exact T'.
Qed.

Lemma input_tracks : forall d den l, (0 < d)%Z -> (0 < den)%Z ->
  let x := map (fun a => (a * d / den)%Z) l in
  tracks d (length l) (vec den l) (x, root_up (count x)).
Proof.
  intros d den l Hd Hden x; assert (Lx : length x = length l) by apply map_length.
  split; [exact Lx|]; cbn [fst snd]; unfold count; rewrite Lx, <- (Z.mul_1_l (root_up _)).
  apply rounded_entries; [exact Hd|lia|]; intros i Hi; unfold x; rewrite vec_map by exact Hi.
  replace (vec den l i) with (IZR (nth i l 0%Z * d) / IZR den / IZR d).
  - apply floor_on_grid; assumption.
  - apply IZR_lt in Hd; apply IZR_lt in Hden; unfold vec; rewrite mult_IZR; field; lra.
Qed.

Lemma root_2 : sqrt 2 <= 3 / 2.
Proof. apply le_of_squares; [lra|]; rewrite sqrt_sqrt; lra. Qed.

Lemma row_sound : forall nw r d most,
  check_network nw = true -> length (input r) = inputs nw -> (0 < input_den r)%Z ->
  (0 < radius_den r)%Z -> (class r < classes nw)%nat ->
  check_row_at nw r (prepare nw (d, most)) = true -> claim nw r.
Proof.
  intros nw r d most Hn Li Hid Hrd Hc H; unfold check_row_at in H.
  change (grid (prepare nw (d, most))) with d in H.
  set (x := map _ (input r)) in H.
  destruct (Checker.evaluate d (ready (prepare nw (d, most))) (x, root_up (count x))) as [z e] eqn:E.
  split_bools; rename H into Hd, H0 into Hr; rewrite forallb_forall in Hr.
  assert (T := input_tracks d (input_den r) (input r) Hd Hid); fold x in T; rewrite Li in T.
  apply (logits_track d most nw _ _ Hd Hn) in T; rewrite E in T; destruct T as [_ T].
  cbn [fst snd] in T; destruct (pairs_sound nw (class r) Hn Hc) as [Hpd HK].
  set (u := logits nw (vec (input_den r) (input r))) in *.
  assert (D := IZR_lt 0 d Hd); assert (P : 0 < / IZR d) by (apply Rinv_0_lt_compat, D).
  assert (Main : forall j, (j < classes nw)%nat -> j <> class r ->
    0 < u (class r) - u j
    /\ IZR (pair nw (class r) j) / IZR (pairs_den nw) * (IZR (radius r) / IZR (radius_den r))
       <= u (class r) - u j).
  { intros j Hj Hjc; specialize (Hr j ltac:(apply in_seq; lia)); unfold check_rival in Hr.
    apply orb_prop in Hr; destruct Hr as [Q|Hr]; [apply Nat.eqb_eq in Q; lia|]; split_bools.
    rename H into M0, H0 into M.
    set (mz := (nth (class r) z 0 - nth j z 0 - over (3 * e) 2)%Z) in *.
    assert (A := margins_apart (classes nw) u (vec d z) (class r) j _ Hc Hj T).
    assert (E0 : 0 <= IZR e / IZR d) by (eapply Rle_trans; [apply distance_nonneg|exact T]).
    assert (O := over_above (3 * e) 2 ltac:(lia)); rewrite mult_IZR in O.
    assert (S : sqrt 2 * (IZR e / IZR d) <= 3 / 2 * (IZR e / IZR d))
      by (apply Rmult_le_compat_r; [exact E0|apply root_2]).
    assert (O' : 3 / 2 * (IZR e / IZR d) <= IZR (over (3 * e) 2) / IZR d).
    { replace (3 / 2 * (IZR e / IZR d)) with (3 * IZR e / 2 * / IZR d) by (field; lra).
      apply Rmult_le_compat_r; lra. }
    assert (Mz : IZR mz / IZR d
      = vec d z (class r) - vec d z j - IZR (over (3 * e) 2) / IZR d).
    { unfold mz, vec; rewrite !minus_IZR; field; lra. }
    assert (G : IZR mz / IZR d <= u (class r) - u j).
    { generalize (Rle_abs (- (u (class r) - u j - (vec d z (class r) - vec d z j)))).
      rewrite Rabs_Ropp; lra. }
    split.
    - eapply Rlt_le_trans; [|exact G]; apply IZR_lt in M0; unfold Rdiv; nra.
    - eapply Rle_trans; [|exact G].
      replace (IZR (pair nw (class r) j) / IZR (pairs_den nw) * (IZR (radius r) / IZR (radius_den r)))
        with (IZR (pair nw (class r) j * radius r) / IZR (pairs_den nw * radius_den r)).
      + apply quotients_le; [nia|exact Hd|exact M].
      + apply IZR_lt in Hpd; apply IZR_lt in Hrd; rewrite !mult_IZR; field; lra. }
  split.
  - intros j Hj Hjc; destruct (Main j Hj Hjc); fold u; lra.
  - exact (margin_open_ball _ _ _ _ _ _ _ HK Main).
Qed.

(** Whatever witnesses and precisions are given: if the checker answers [true], every row's claim is
    true of the real-valued network. *)
Theorem check_sound : forall nw rows precisions, check nw rows precisions = true ->
  forall r, In r rows -> claim nw r.
Proof.
  intros nw rows precisions H r Hr; unfold check in H; apply andb_prop in H; destruct H as [Hn H].
  unfold check_rows in H; rewrite forallb_forall in H; specialize (H r Hr); unfold check_row in H.
  split_bools; match goal with A : existsb _ _ = true |- _ => apply existsb_exists in A;
    destruct A as (p & Hp & A) end.
  apply in_map_iff in Hp; destruct Hp as ([d most] & <- & _).
  apply (row_sound nw r d most); assumption.
Qed.
