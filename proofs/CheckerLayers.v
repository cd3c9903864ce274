(** What the checker's layers are about: a layer's real function, its Lipschitz constant, and how far
    the values on the grid are from it. *)

Require Import Reals Lra Lia Psatz ZArith List Bool Arith FunctionalExtensionality.
From Robustcert Require Import Sums Vectors Lipschitz Residual Activations GroupSort.
From Robustcert Require Import Checker Grid CheckerNorm.
Import ListNotations.
Open Scope R_scope.

(** The real function of a layer. *)
Definition real (l : layer) : vector -> vector :=
  match l with
  | Dense n den rows bias => fun x => vadd (linear n (mat den rows) x) (vec den bias)
  | Scaling den scale shift => fun x i => vec den scale i * x i + vec den shift i
  | Relu => entrywise (fun _ => relu)
  | Leaky num den => entrywise (fun _ => leaky_relu (IZR num / IZR den))
  | Abs => entrywise (fun _ => Rabs)
  | NActivation den low high => entrywise (fun i => n_activation (vec den low i) (vec den high i))
  | Sort _ size => groupwise size size (fun _ => sort_group size)
  | Householder size normals =>
      groupwise size size (fun i => householder size (vec 1 (nth i normals [])))
  end.

Definition bound_of (s : step) : R := IZR (Checker.bound s) / IZR (bound_den s).

(** ** Lipschitz constants *)

Lemma quotient_nonneg : forall a b, (0 <= a)%Z -> (0 < b)%Z -> 0 <= IZR a / IZR b.
Proof.
  intros a b Ha Hb; apply Rmult_le_pos; [apply IZR_le, Ha|].
  apply Rlt_le, Rinv_0_lt_compat, IZR_lt, Hb.
Qed.

Lemma at_least_one_bound : forall s, (0 < bound_den s)%Z -> at_least_one s = true -> 1 <= bound_of s.
Proof.
  intros s Hd H; unfold at_least_one in H; split_bools; unfold bound_of.
  replace 1 with (IZR 1 / IZR 1) by field; apply quotients_le; lia.
Qed.

Lemma quotient_abs_le : forall a b c d, (0 < b)%Z -> (0 < d)%Z -> (Z.abs a * d <= c * b)%Z ->
  Rabs (IZR a / IZR b) <= IZR c / IZR d.
Proof.
  intros a b c d Hb Hd H; unfold Rdiv at 1; rewrite Rabs_mult, Rabs_Zabs.
  rewrite (Rabs_pos_eq (/ IZR b)) by (apply Rlt_le, Rinv_0_lt_compat, IZR_lt, Hb).
  apply (quotients_le (Z.abs a) b c d); assumption.
Qed.

Lemma vec_1 : forall l i, vec 1 l i = IZR (nth i l 0%Z).
Proof. intros; unfold vec; field. Qed.

Lemma square_vec_1 : forall v, (0 < Checker.square v)%Z -> 0 < Vectors.square (length v) (vec 1 v).
Proof.
  intros v H; apply IZR_lt in H; rewrite (square_sum v (length v)) in H by lia.
  rewrite (square_ext _ _ (fun i => IZR (nth i v 0%Z))) by (intros; apply vec_1); exact H.
Qed.

Lemma check_step_lipschitz : forall n s, check_step n s = true ->
  0 <= bound_of s /\ lipschitz n (outputs n (body s)) (bound_of s) (real (body s)).
Proof.
  intros n s H; unfold check_step in H; split_bools; rename H0 into Hs.
  assert (B := quotient_nonneg _ _ ltac:(eassumption) ltac:(eassumption) : 0 <= bound_of s).
  split; [exact B|].
  assert (One : at_least_one s = true -> 1 <= bound_of s) by (apply at_least_one_bound; assumption).
  destruct (body s); simpl; split_bools; subst.
  - apply lipschitz_dense, (check_norm_sound _ _ _ _ _ (why s)); assumption.
  - apply lipschitz_scaling; intros i Hi; apply quotient_abs_le; try assumption.
    match goal with A : forallb _ scale = true |- _ => rewrite forallb_forall in A;
      apply Z.leb_le, A, nth_In, Hi end.
  - apply (lipschitz_weaken n n 1); [apply One; assumption|apply lipschitz_relu].
  - apply (lipschitz_weaken n n (Rmax 1 (Rabs (IZR num / IZR den)))); [|apply lipschitz_leaky_relu].
    apply Rmax_lub; [apply One; assumption|apply quotient_abs_le; assumption].
  - apply (lipschitz_weaken n n 1); [apply One; assumption|apply lipschitz_abs].
  - apply (lipschitz_weaken _ _ 1); [apply One; assumption|apply lipschitz_n_activation].
  - apply (lipschitz_weaken _ _ 1); [apply One; assumption|apply lipschitz_group_sort].
  - apply (lipschitz_weaken _ _ 1); [apply One; assumption|apply lipschitz_householder].
    intros i Hi.
    assert (L : length (nth i normals []) = size) by (apply all_of_length_nth; assumption).
    rewrite <- L at 1; apply square_vec_1.
    match goal with A : forallb _ normals = true |- _ => rewrite forallb_forall in A;
      specialize (A (nth i normals []) (nth_In normals [] Hi)) end.
    split_bools; assumption.
Qed.

(** ** Values on the grid *)

(** The list has n values, and is within e / d of v. *)
Definition tracks (d : Z) (n : nat) (v : vector) (s : state) : Prop :=
  length (fst s) = n /\ distance n v (vec d (fst s)) <= IZR (snd s) / IZR d.

Lemma moved : forall d n m s f v x y e r,
  (0 < d)%Z -> (0 < bound_den s)%Z -> 0 <= bound_of s -> lipschitz n m (bound_of s) f ->
  distance n v (vec d x) <= IZR e / IZR d ->
  distance m (f (vec d x)) (vec d y) <= IZR r / IZR d ->
  distance m (f v) (vec d y)
  <= IZR (over (Checker.bound s * e) (bound_den s) + r) / IZR d.
Proof.
  intros d n m s f v x y e r Hd Hb B L Hv Hy; assert (D := IZR_lt 0 d Hd).
  eapply Rle_trans; [apply (distance_triangle m _ (f (vec d x)))|].
  rewrite plus_IZR, Rdiv_plus_distr; apply Rplus_le_compat; [|exact Hy].
  eapply Rle_trans; [apply L|].
  apply Rle_trans with (bound_of s * (IZR e / IZR d)); [apply Rmult_le_compat_l; assumption|].
  assert (Hb' := IZR_lt 0 _ Hb).
  generalize (over_above (Checker.bound s * e) (bound_den s) Hb); rewrite mult_IZR; intros O.
  replace (bound_of s * (IZR e / IZR d))
    with (IZR (Checker.bound s) * IZR e / IZR (bound_den s) * / IZR d)
    by (unfold bound_of; field; lra).
  apply Rmult_le_compat_r; [apply Rlt_le, Rinv_0_lt_compat, D|exact O].
Qed.

(** An entry is within k / d. *)
Lemma rounded_entries : forall d k n u v, (0 < d)%Z -> (0 <= k)%Z ->
  (forall i, (i < n)%nat -> Rabs (u i - v i) <= IZR k / IZR d) ->
  distance n u v <= IZR (k * root_up (Z.of_nat n)) / IZR d.
Proof.
  intros d k n u v Hd Hk H.
  eapply Rle_trans; [apply (distance_entries n u v (IZR k / IZR d)); [|exact H]|].
  - apply quotient_nonneg; assumption.
  - apply Req_le; rewrite mult_IZR; field; apply IZR_lt in Hd; lra.
Qed.

Lemma exact_entries : forall d n u v, (forall i, (i < n)%nat -> u i = v i) ->
  distance n u v <= IZR 0 / IZR d.
Proof. intros; rewrite distance_equal by assumption; unfold Rdiv; lra. Qed.

Lemma local_dense : forall d n den rows bias c x, (0 < d)%Z -> (0 < den)%Z -> length x = n ->
  all_of_length n rows = true -> length bias = length rows ->
  let y := map2 (fun sum b => ((c * sum + b * d) / den)%Z)
             (map (fun r => Checker.dot r x) (coarse c rows)) bias in
  length y = length rows /\
  distance (length rows) (vadd (linear n (mat den rows) (vec d x)) (vec den bias)) (vec d y)
  <= IZR (over (cut c rows * root_up (Checker.square x)) den + root_up (count y)) / IZR d.
Proof.
  intros d n den rows bias c x Hd Hden Hx Hl Hb y.
  assert (D := IZR_lt 0 d Hd); assert (De := IZR_lt 0 den Hden).
  assert (Ls : length (map (fun r => Checker.dot r x) (coarse c rows)) = length bias)
    by (rewrite map_length, coarse_length; symmetry; exact Hb).
  assert (Ly : length y = length rows)
    by (unfold y; rewrite map2_length by exact Ls; rewrite map_length; apply coarse_length).
  split; [exact Ly|].
  set (u := fun i => IZR (c * Checker.dot (nth i (coarse c rows) []) x + nth i bias 0%Z * d)
                     / IZR den / IZR d).
  rewrite plus_IZR, Rdiv_plus_distr.
  eapply Rle_trans; [apply (distance_triangle _ _ u)|apply Rplus_le_compat].
  - apply Rle_trans with (IZR (cut c rows) / IZR den * norm n (vec d x)).
    + eapply Rle_trans; [apply Req_le|apply (cut_norm den c rows n Hden Hl)].
      apply norm_ext; intros i Hi; unfold vsub, vadd, u, linear, Vectors.dot.
      assert (Li : length (nth i (coarse c rows) []) = n).
      { apply all_of_length_nth; [apply coarse_of_length, Hl|rewrite coarse_length; exact Hi]. }
      rewrite plus_IZR, !mult_IZR, (dot_sum _ _ n) by lia.
      replace ((IZR c * sum n (fun j => IZR (nth j (nth i (coarse c rows) []) 0%Z)
                 * IZR (nth j x 0%Z)) + IZR (nth i bias 0%Z) * IZR d) / IZR den / IZR d)
        with (sum n (fun j => IZR c / IZR den * IZR (nth j (nth i (coarse c rows) []) 0%Z)
                 * vec d x j) + vec den bias i).
      * unfold Rminus at 1; rewrite (Rplus_comm _ (vec den bias i)), Ropp_plus_distr.
        rewrite (sum_ext n (fun i0 => (mat den rows i i0 - _) * _) (fun j => mat den rows i j * vec d x j
          - IZR c / IZR den * IZR (nth j (nth i (coarse c rows) []) 0%Z) * vec d x j))
          by (intros; ring).
        rewrite sum_minus; ring.
      * unfold vec; rewrite (sum_ext n _ (fun j => IZR c / IZR den / IZR d
          * (IZR (nth j (nth i (coarse c rows) []) 0%Z) * IZR (nth j x 0%Z))))
          by (intros; field; lra).
        rewrite sum_scal; field; lra.
    + generalize (over_above (cut c rows * root_up (Checker.square x)) den Hden); intros O.
      assert (P : 0 < / IZR d) by (apply Rinv_0_lt_compat, D).
      apply Rle_trans with (IZR (cut c rows * root_up (Checker.square x)) / IZR den * / IZR d);
        [|apply Rmult_le_compat_r; [lra|exact O]].
      rewrite mult_IZR.
      replace (IZR (cut c rows) * IZR (root_up (Checker.square x)) / IZR den * / IZR d)
        with (IZR (cut c rows) / IZR den * (IZR (root_up (Checker.square x)) / IZR d)) by (field; lra).
      apply Rmult_le_compat_l; [apply quotient_nonneg; [apply root_up_nonneg|exact Hden]|].
      rewrite <- Hx; apply norm_vec, Hd.
  - unfold count; rewrite Ly, <- (Z.mul_1_l (root_up _)).
    apply rounded_entries; [exact Hd|lia|]; intros i Hi; unfold u, vec, y.
    rewrite map2_nth by (rewrite ?map_length, ?coarse_length in *; lia).
    rewrite (map_nth_in _ _ _ (coarse c rows) i []) by (rewrite coarse_length; exact Hi).
    apply floor_on_grid; assumption.
Qed.

Lemma local_scaling : forall d n den scale shift x, (0 < d)%Z -> (0 < den)%Z -> length x = n ->
  length scale = n -> length shift = n ->
  let y := map2 (fun z b => ((z + b * d) / den)%Z) (map2 Z.mul scale x) shift in
  length y = n /\
  distance n (fun i => vec den scale i * vec d x i + vec den shift i) (vec d y)
  <= IZR (root_up (count x)) / IZR d.
Proof.
  intros d n den scale shift x Hd Hden Hx Hs Hb y.
  assert (D := IZR_lt 0 d Hd); assert (De := IZR_lt 0 den Hden).
  assert (Lm : length (map2 Z.mul scale x) = n) by (rewrite map2_length; lia).
  split; [unfold y; rewrite map2_length; lia|].
  unfold count; rewrite Hx, <- (Z.mul_1_l (root_up _)).
  apply rounded_entries; [exact Hd|lia|]; intros i Hi; unfold y.
  unfold vec at 4; rewrite map2_nth, map2_nth by lia.
  replace (vec den scale i * vec d x i + vec den shift i)
    with (IZR (nth i scale 0%Z * nth i x 0%Z + nth i shift 0%Z * d) / IZR den / IZR d)
    by (unfold vec; rewrite plus_IZR, !mult_IZR; field; lra).
  apply floor_on_grid; assumption.
Qed.

Lemma vec_map : forall d f x i, (i < length x)%nat -> vec d (map f x) i = IZR (f (nth i x 0%Z)) / IZR d.
Proof. intros; unfold vec; rewrite (map_nth_in _ _ _ x i 0%Z) by assumption; reflexivity. Qed.

Lemma min_on_grid : forall d a b, (0 < d)%Z ->
  Rmin (IZR a / IZR d) (IZR b / IZR d) = IZR (Z.min a b) / IZR d.
Proof.
  intros d a b Hd; destruct (Z.le_ge_cases a b) as [H|H].
  - rewrite Z.min_l, Rmin_left by (try apply quotients_le; nia); reflexivity.
  - rewrite Z.min_r, Rmin_right by (try apply quotients_le; nia); reflexivity.
Qed.

Lemma max_on_grid : forall d a b, (0 < d)%Z ->
  Rmax (IZR a / IZR d) (IZR b / IZR d) = IZR (Z.max a b) / IZR d.
Proof.
  intros d a b Hd; destruct (Z.le_ge_cases a b) as [H|H].
  - rewrite Z.max_r, Rmax_right by (try apply quotients_le; nia); reflexivity.
  - rewrite Z.max_l, Rmax_left by (try apply quotients_le; nia); reflexivity.
Qed.

Lemma zero_on_grid : forall d, 0 = IZR 0 / IZR d.
Proof. intros; unfold Rdiv; ring. Qed.

Lemma local_relu : forall d n x, (0 < d)%Z -> length x = n ->
  distance n (entrywise (fun _ => relu) (vec d x)) (vec d (map (fun z => Z.max z 0) x))
  <= IZR 0 / IZR d.
Proof.
  intros d n x Hd Hx; apply exact_entries; intros i Hi; rewrite vec_map by lia.
  unfold entrywise, relu; rewrite (zero_on_grid d) at 1; apply max_on_grid, Hd.
Qed.

Lemma local_abs : forall d n x, (0 < d)%Z -> length x = n ->
  distance n (entrywise (fun _ => Rabs) (vec d x)) (vec d (map Z.abs x)) <= IZR 0 / IZR d.
Proof.
  intros d n x Hd Hx; apply exact_entries; intros i Hi; rewrite vec_map by lia.
  unfold entrywise, vec, Rdiv; rewrite Rabs_mult, Rabs_Zabs.
  rewrite (Rabs_pos_eq (/ IZR d)); [reflexivity|apply Rlt_le, Rinv_0_lt_compat, IZR_lt, Hd].
Qed.

Lemma local_leaky : forall d n num den x, (0 < d)%Z -> (0 < den)%Z -> length x = n ->
  distance n (entrywise (fun _ => leaky_relu (IZR num / IZR den)) (vec d x))
    (vec d (map (fun z => if (z <? 0)%Z then (num * z / den)%Z else z) x))
  <= IZR (root_up (count x)) / IZR d.
Proof.
  intros d n num den x Hd Hden Hx; assert (D := IZR_lt 0 d Hd); assert (De := IZR_lt 0 den Hden).
  unfold count; rewrite Hx, <- (Z.mul_1_l (root_up _)).
  apply rounded_entries; [exact Hd|lia|]; intros i Hi; rewrite vec_map by lia.
  unfold entrywise, leaky_relu, vec.
  assert (P : 0 < / IZR d) by (apply Rinv_0_lt_compat, D).
  destruct (Z.ltb_spec (nth i x 0%Z) 0) as [N|N].
  - apply IZR_lt in N; destruct (Rlt_dec (IZR (nth i x 0%Z) / IZR d) 0) as [_|C].
    + replace (IZR num / IZR den * (IZR (nth i x 0%Z) / IZR d))
        with (IZR (num * nth i x 0%Z) / IZR den / IZR d) by (rewrite mult_IZR; field; lra).
      apply floor_on_grid; assumption.
    + destruct C; unfold Rdiv; nra.
  - apply IZR_le in N; destruct (Rlt_dec (IZR (nth i x 0%Z) / IZR d) 0) as [C|_].
    + exfalso; unfold Rdiv in C; nra.
    + unfold Rminus; rewrite Rplus_opp_r, Rabs_R0; apply quotient_nonneg; lia.
Qed.

(** The corners are rounded: within 1 / d, and twice that in the result. *)
Lemma local_n_activation : forall d n den low high x, (0 < d)%Z -> (0 < den)%Z -> length x = n ->
  length low = n -> length high = n ->
  let y := map2 (fun z c => (z - c)%Z) x
    (map2 (fun c h => (2 * Z.min c (h * d / den))%Z)
       (map2 (fun z l => Z.max z (l * d / den)) x low) high) in
  length y = n /\
  distance n (entrywise (fun i => n_activation (vec den low i) (vec den high i)) (vec d x)) (vec d y)
  <= IZR (2 * root_up (count x)) / IZR d.
Proof.
  intros d n den low high x Hd Hden Hx Hlo Hhi y.
  assert (D := IZR_lt 0 d Hd); assert (De := IZR_lt 0 den Hden).
  assert (L1 : length (map2 (fun z l => Z.max z (l * d / den)) x low) = n)
    by (rewrite map2_length; lia).
  assert (L2 : length (map2 (fun c h => (2 * Z.min c (h * d / den))%Z)
    (map2 (fun z l => Z.max z (l * d / den)) x low) high) = n) by (rewrite map2_length; lia).
  split; [unfold y; rewrite map2_length; lia|].
  unfold count; rewrite Hx; apply rounded_entries; [exact Hd|lia|]; intros i Hi.
  unfold entrywise, vec at 4, y; rewrite !map2_nth by lia.
  set (a := nth i x 0%Z).
  assert (C : forall c, Rabs (vec den c i - IZR (nth i c 0%Z * d / den) / IZR d) <= 1 / IZR d).
  { intros c; replace (vec den c i) with (IZR (nth i c 0%Z * d) / IZR den / IZR d)
      by (unfold vec; rewrite mult_IZR; field; lra).
    apply floor_on_grid; assumption. }
  generalize (C low) (C high); clear C; intros Cl Ch.
  rewrite minus_IZR, mult_IZR, Rdiv_minus_distr.
  replace (2 * IZR (Z.min (Z.max a (nth i low 0%Z * d / den)) (nth i high 0%Z * d / den)) / IZR d)
    with (2 * (IZR (Z.min (Z.max a (nth i low 0%Z * d / den)) (nth i high 0%Z * d / den)) / IZR d))
    by (field; lra).
  rewrite <- min_on_grid, <- max_on_grid by exact Hd.
  replace (vec d x i) with (IZR a / IZR d) by reflexivity.
  unfold n_activation; set (p := IZR a / IZR d).
  set (l := vec den low i) in *; set (h := vec den high i) in *.
  set (l' := IZR (nth i low 0%Z * d / den) / IZR d) in *.
  set (h' := IZR (nth i high 0%Z * d / den) / IZR d) in *.
  replace (2 / IZR d) with (2 * (1 / IZR d)) by (field; lra).
  set (w := 1 / IZR d) in *; clearbody p l h l' h' w; clear - Cl Ch.
  assert (Bl : - w <= l - l' <= w) by (unfold Rabs in Cl; destruct (Rcase_abs (l - l')); lra).
  assert (Bh : - w <= h - h' <= w) by (unfold Rabs in Ch; destruct (Rcase_abs (h - h')); lra).
  clear Cl Ch; by_cases.
Qed.

(** ** Groups *)

Lemma insert_on_grid : forall d, (0 < d)%Z -> forall l a,
  GroupSort.insert (IZR a / IZR d) (map (fun z => IZR z / IZR d) l)
  = map (fun z => IZR z / IZR d) (Checker.insert a l).
Proof.
  intros d Hd; induction l as [|b l IH]; intros a; simpl; [reflexivity|].
  rewrite min_on_grid, max_on_grid, IH by exact Hd; reflexivity.
Qed.

Lemma sort_on_grid : forall d, (0 < d)%Z -> forall l,
  GroupSort.sort (map (fun z => IZR z / IZR d) l) = map (fun z => IZR z / IZR d) (Checker.sort l).
Proof.
  intros d Hd; induction l as [|a l IH]; simpl; [reflexivity|].
  rewrite IH; apply insert_on_grid, Hd.
Qed.

Lemma insert_length_Z : forall l a, length (Checker.insert a l) = S (length l).
Proof. induction l as [|b l IH]; intros a; simpl; [|rewrite IH]; reflexivity. Qed.

Lemma sort_length_Z : forall l, length (Checker.sort l) = length l.
Proof. induction l as [|a l IH]; simpl; [|rewrite insert_length_Z, IH]; reflexivity. Qed.

Lemma values_vec : forall d l, values (length l) (vec d l) = map (fun z => IZR z / IZR d) l.
Proof.
  intros d l; apply (nth_ext _ _ 0 (IZR 0 / IZR d)).
  - rewrite values_length, map_length; reflexivity.
  - rewrite values_length; intros i Hi; rewrite values_nth by exact Hi.
    rewrite (map_nth (fun z => IZR z / IZR d) l 0%Z); reflexivity.
Qed.

(** The first group, and those after it. *)
Lemma groupwise_first : forall g h x i, (i < g)%nat -> groupwise g g h x i = h 0%nat x i.
Proof.
  intros g h x i Hi; unfold groupwise; rewrite Nat.div_small, Nat.mod_small by exact Hi.
  reflexivity.
Qed.

Lemma groupwise_rest : forall g h x i, (0 < g)%nat ->
  groupwise g g h x (g + i)%nat = groupwise g g (fun k => h (S k)) (fun j => x (g + j)%nat) i.
Proof.
  intros g h x i Hg; unfold groupwise.
  replace ((g + i) / g)%nat with (S (i / g))
    by (replace (g + i)%nat with (i + 1 * g)%nat by lia; rewrite Nat.div_add by lia; lia).
  replace ((g + i) mod g)%nat with (i mod g)%nat
    by (replace (g + i)%nat with (i + 1 * g)%nat by lia; rewrite Nat.mod_add by lia; reflexivity).
  f_equal; apply functional_extensionality; intros j; unfold group; f_equal; lia.
Qed.

Lemma vec_skipn : forall d g l, (fun j => vec d l (g + j)%nat) = vec d (skipn g l).
Proof.
  intros d g l; apply functional_extensionality; intros j; unfold vec; do 2 f_equal.
  revert l; induction g as [|g IH]; intros [|a l]; simpl; try reflexivity; [destruct j|apply IH];
    reflexivity.
Qed.

Lemma vec_firstn : forall d g l i, (i < g)%nat -> vec d (firstn g l) i = vec d l i.
Proof.
  intros d g l i Hi; unfold vec; do 2 f_equal; revert l i Hi.
  induction g as [|g IH]; intros [|a l] [|i] Hi; simpl; try lia; try reflexivity; apply IH; lia.
Qed.

Lemma vec_app : forall d a b i, vec d (a ++ b) i
  = if Nat.ltb i (length a) then vec d a i else vec d b (i - length a)%nat.
Proof.
  intros d a b i; unfold vec; destruct (Nat.ltb_spec i (length a)).
  - rewrite app_nth1 by assumption; reflexivity.
  - rewrite app_nth2 by assumption; reflexivity.
Qed.

(** Every group by its own function. *)
Fixpoint run_groups (g : nat) (fs : list (list Z -> list Z)) (l : list Z) : list Z :=
  match fs with
  | [] => []
  | f :: rest => f (firstn g l) ++ run_groups g rest (skipn g l)
  end.

Lemma sort_groups_run : forall k g l,
  sort_groups k g l = run_groups g (repeat Checker.sort k) l.
Proof. induction k as [|k IH]; intros g l; simpl; [|rewrite IH]; reflexivity. Qed.

Lemma reflect_groups_run : forall normals g l,
  reflect_groups g normals l = run_groups g (map reflect normals) l.
Proof. induction normals as [|v rest IH]; intros g l; simpl; [|rewrite IH]; reflexivity. Qed.

(** Lists made group by group are within k of the real function if each group is. *)
Lemma groups_within : forall d g (k : R) fs h l,
  length l = (length fs * g)%nat ->
  (forall i z, (i < length fs)%nat -> length z = g ->
     length (nth i fs (fun z => z) z) = g
     /\ forall j, (j < g)%nat -> Rabs (h i (vec d z) j - vec d (nth i fs (fun z => z) z) j) <= k) ->
  (forall i u v j, (i < length fs)%nat -> (forall j, (j < g)%nat -> u j = v j) -> (j < g)%nat ->
     h i u j = h i v j) ->
  length (run_groups g fs l) = length l /\
  forall i, (i < length l)%nat ->
    Rabs (groupwise g g h (vec d l) i - vec d (run_groups g fs l) i) <= k.
Proof.
  intros d g k; induction fs as [|f fs IH]; intros h l Hn H Hext; simpl in Hn; simpl run_groups.
  - rewrite Hn; split; [reflexivity|lia].
  - assert (Lf : length (firstn g l) = g) by (apply firstn_length_le; lia).
    destruct (H 0%nat (firstn g l) ltac:(simpl; lia) Lf) as [L0 H0]; simpl in L0, H0.
    destruct (IH (fun k => h (S k)) (skipn g l)) as [Ls Hs].
    + rewrite skipn_length; lia.
    + intros i z Hi Hz; apply (H (S i) z); [simpl; lia|exact Hz].
    + intros i u v j Hi Huv Hj; apply Hext; [simpl; lia|exact Huv|exact Hj].
    + rewrite skipn_length in Ls, Hs.
      split; [rewrite app_length, L0, Ls; lia|].
      intros i Hi; rewrite vec_app, L0; destruct (Nat.ltb_spec i g) as [S|S].
      * rewrite groupwise_first by exact S.
        rewrite (Hext 0%nat (vec d l) (vec d (firstn g l)) i); [apply H0, S|simpl; lia| |exact S].
        intros j Hj; symmetry; apply vec_firstn, Hj.
      * replace i with (g + (i - g))%nat at 1 by lia; rewrite groupwise_rest by lia.
        rewrite vec_skipn; apply Hs; lia.
Qed.

Lemma local_sort : forall d k g x, (0 < d)%Z -> length x = (k * g)%nat ->
  length (sort_groups k g x) = (k * g)%nat /\
  distance (k * g) (groupwise g g (fun _ => sort_group g) (vec d x)) (vec d (sort_groups k g x))
  <= IZR 0 / IZR d.
Proof.
  intros d k g x Hd Hx.
  assert (G : length (run_groups g (repeat Checker.sort k) x) = length x /\
    forall i, (i < length x)%nat -> Rabs (groupwise g g (fun _ => sort_group g) (vec d x) i
      - vec d (run_groups g (repeat Checker.sort k) x) i) <= 0).
  { apply groups_within.
    - rewrite repeat_length; exact Hx.
    - intros i z Hi Hz; rewrite repeat_length in Hi.
      assert (E : nth i (repeat Checker.sort k) (fun z => z) = Checker.sort).
      { apply (repeat_spec k), nth_In; rewrite repeat_length; exact Hi. }
      rewrite E; split; [rewrite sort_length_Z; exact Hz|]; intros j Hj.
      unfold sort_group; rewrite <- Hz at 1; rewrite values_vec, sort_on_grid by exact Hd.
      rewrite (map_nth_in _ _ _ _ j 0%Z) by (rewrite sort_length_Z; lia).
      unfold vec, Rminus; rewrite Rplus_opp_r, Rabs_R0; lra.
    - intros i u v j _ Huv Hj; unfold sort_group, values.
      rewrite (map_ext_in u v); [reflexivity|].
      intros a Ha; apply in_seq in Ha; apply Huv; lia. }
  rewrite sort_groups_run, Hx in *; destruct G as [L G]; split; [exact L|].
  apply exact_entries; intros i Hi; specialize (G i Hi).
  apply Rminus_diag_uniq; generalize (Rabs_pos (groupwise g g (fun _ => sort_group g) (vec d x) i
    - vec d (run_groups g (repeat Checker.sort k) x) i)); intros P.
  destruct (Req_dec (groupwise g g (fun _ => sort_group g) (vec d x) i
    - vec d (run_groups g (repeat Checker.sort k) x) i) 0) as [E|N]; [exact E|].
  apply Rabs_pos_lt in N; lra.
Qed.

Lemma reflect_within : forall d v z j, (0 < d)%Z -> (0 < Checker.square v)%Z ->
  length z = length v -> (j < length v)%nat ->
  Rabs (householder (length v) (vec 1 v) (vec d z) j - vec d (reflect v z) j) <= 1 / IZR d.
Proof.
  intros d v z j Hd Hv Hz Hj; assert (D := IZR_lt 0 d Hd); assert (V := IZR_lt 0 _ Hv).
  set (b := Z.min (Checker.dot v z) 0); set (s := Checker.square v) in *.
  assert (E : vec d (reflect v z) j = IZR (nth j z 0%Z - 2 * b * nth j v 0%Z / s) / IZR d).
  { unfold vec, reflect; rewrite map2_nth by lia; reflexivity. }
  rewrite E; unfold householder.
  assert (Dot : Vectors.dot (length v) (vec 1 v) (vec d z) = IZR (Checker.dot v z) / IZR d).
  { rewrite (dot_sum v z (length v)) by lia; unfold Vectors.dot, Rdiv; rewrite <- sum_scal_r.
    apply sum_ext; intros; rewrite vec_1; unfold vec, Rdiv; ring. }
  rewrite Dot; replace (Rmin _ 0) with (IZR b / IZR d)
    by (unfold b; rewrite (zero_on_grid d) at 1; rewrite min_on_grid by exact Hd; reflexivity).
  rewrite (square_ext _ (vec 1 v) (fun i => IZR (nth i v 0%Z))) by (intros; apply vec_1).
  rewrite <- square_sum by lia; fold s; rewrite vec_1.
  rewrite <- Rabs_Ropp.
  replace (- _) with (IZR (2 * b * nth j v 0%Z) / IZR s / IZR d
                      - IZR (2 * b * nth j v 0%Z / s) / IZR d)
    by (unfold vec; rewrite minus_IZR, !mult_IZR; field; lra).
  apply floor_on_grid; assumption.
Qed.

Lemma local_householder : forall d g normals x, (0 < d)%Z -> length x = (length normals * g)%nat ->
  all_of_length g normals = true -> forallb (fun v => (0 <? Checker.square v)%Z) normals = true ->
  length (reflect_groups g normals x) = (length normals * g)%nat /\
  distance (length normals * g)
    (groupwise g g (fun i => householder g (vec 1 (nth i normals []))) (vec d x))
    (vec d (reflect_groups g normals x))
  <= IZR (root_up (count x)) / IZR d.
Proof.
  intros d g normals x Hd Hx Hl Hp.
  assert (G : length (run_groups g (map reflect normals) x) = length x /\
    forall i, (i < length x)%nat -> Rabs (groupwise g g
      (fun i => householder g (vec 1 (nth i normals []))) (vec d x) i
      - vec d (run_groups g (map reflect normals) x) i) <= IZR 1 / IZR d).
  { apply groups_within.
    - rewrite map_length; exact Hx.
    - intros i z Hi Hz; rewrite map_length in Hi.
      rewrite (map_nth_in _ _ reflect normals i []) by exact Hi.
      assert (Li := all_of_length_nth g normals i Hl Hi).
      rewrite forallb_forall in Hp; specialize (Hp _ (nth_In normals [] Hi)); split_bools.
      split; [unfold reflect; rewrite map2_length; lia|].
      intros j Hj; rewrite <- Li at 1; apply reflect_within; try assumption; lia.
    - intros i u v j _ Huv Hj; unfold householder, Vectors.dot.
      rewrite (Huv j Hj), (sum_ext g (fun i0 => _ * u i0) (fun i0 => vec 1 (nth i normals []) i0 * v i0));
        [reflexivity|]; intros a Ha; rewrite Huv by exact Ha; reflexivity. }
  rewrite reflect_groups_run; unfold count; rewrite Hx in *; destruct G as [L G].
  split; [exact L|]; rewrite <- (Z.mul_1_l (root_up _)).
  apply rounded_entries; [exact Hd|lia|exact G].
Qed.

(** ** Every layer *)

Lemma apply_tracks : forall d most n s v st,
  (0 < d)%Z -> check_step n s = true -> tracks d n v st ->
  tracks d (outputs n (body s)) (real (body s) v) (apply d (prepare_step most s) st).
Proof.
  intros d most n s v [x e] Hd Hc [Hx Hv]; cbn [fst snd] in Hx, Hv.
  destruct (check_step_lipschitz n s Hc) as [B L].
  assert (Move := fun m f y r => moved d n m s f v x y e r Hd).
  unfold check_step in Hc; apply andb_prop in Hc; destruct Hc as [Hb Hc].
  apply andb_prop in Hb; destruct Hb as [Hb _]; apply Z.ltb_lt in Hb.
  unfold tracks, apply, prepare_step.
  destruct s as [layer b bd w]; cbn [body Checker.bound bound_den why] in *.
  destruct layer as [inp den rows bias|den scale shift| |num den| |den low high|k g|g normals];
    cbn [real outputs fst snd of by_ rounded lost body Checker.bound bound_den] in *;
    split_bools.
  - subst inp; set (c := Z.max 1 (den / most)).
    destruct (local_dense d n den rows bias c x) as [Ly Hy]; try assumption.
    split; [exact Ly|]; rewrite <- Z.add_assoc; exact (Move _ _ _ _ Hb B L Hv Hy).
  - destruct (local_scaling d n den scale shift x) as [Ly Hy]; try assumption.
    split; [exact Ly|]; exact (Move _ _ _ _ Hb B L Hv Hy).
  - split; [rewrite map_length; exact Hx|].
    rewrite <- (Z.add_0_r (over _ _)); exact (Move _ _ _ _ Hb B L Hv (local_relu d _ x Hd Hx)).
  - split; [rewrite map_length; exact Hx|]; refine (Move _ _ _ _ Hb B L Hv (local_leaky d _ num den x Hd _ Hx)); assumption.
  - split; [rewrite map_length; exact Hx|].
    rewrite <- (Z.add_0_r (over _ _)); exact (Move _ _ _ _ Hb B L Hv (local_abs d _ x Hd Hx)).
  - destruct (local_n_activation d n den low high x) as [Ly Hy]; try assumption.
    split; [exact Ly|]; exact (Move _ _ _ _ Hb B L Hv Hy).
  - match goal with E : (k * g)%nat = n |- _ => rename E into En end.
    destruct (local_sort d k g x) as [Ly Hy]; [exact Hd|congruence|].
    rewrite En in Ly, Hy.
    split; [exact Ly|]; rewrite <- (Z.add_0_r (over _ _)); exact (Move _ _ _ _ Hb B L Hv Hy).
  - match goal with E : (length normals * g)%nat = n |- _ => rename E into En end.
    destruct (local_householder d g normals x) as [Ly Hy]; try assumption; [congruence|].
    rewrite En in Ly, Hy.
    split; [exact Ly|]; exact (Move _ _ _ _ Hb B L Hv Hy).
Qed.
