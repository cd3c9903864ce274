(** The verified checker: a program over integers. CheckerProof.v proves what its answer [true] means.

    A number is an integer over a positive denominator. Nothing that the program is given is trusted:
    witnesses make the check fast, not true. *)

Require Import ZArith List Bool.
Import ListNotations.
Open Scope Z_scope.

(** ** The network, as integers *)

Inductive layer :=
| Dense (inputs : nat) (den : Z) (rows : list (list Z)) (bias : list Z)
    (** rows / den and bias / den *)
| Scaling (den : Z) (scale shift : list Z)  (** of every entry: (scale x + shift) / den *)
| Relu
| Leaky (num den : Z)  (** the slope num / den below 0 *)
| Abs
| NActivation (den : Z) (low high : list Z)  (** corners of every entry, over den *)
| Sort (groups size : nat)  (** groups of neighbours in increasing order; MaxMin has size 2 *)
| Householder (size : nat) (normals : list (list Z)).  (** of groups of neighbours *)

(** Why a dense layer's norm is below its bound: with the rows divided by [divisor] and rounded,
    V, the residual t I - V V' - F F' has a Frobenius norm of at most [error], and t + error <=
    limit^2. Rows of F may be cut where only zeros follow. *)
Record witness := Witness { divisor : Z; t : Z; factor : list (list Z); error : Z; limit : Z }.

(** A layer with a bound on its Lipschitz constant, bound / bound_den. *)
Record step := Step { body : layer; bound : Z; bound_den : Z; why : witness }.

(** The last operation is a dense layer, whose outputs are the logits; pairs / pairs_den are bounds
    on the constants of the differences of two logits. *)
Record network := Network
  { inputs : nat; steps : list step; head : step; pairs_den : Z; pairs : list (list Z) }.

(** The claim for one input, input / input_den: class [class] within radius / radius_den. *)
Record row := Row { input : list Z; input_den : Z; class : nat; radius : Z; radius_den : Z }.

(** ** Sums *)

(** acc + the inner product, up to where the shorter list ends. *)
Fixpoint dot_from (acc : Z) (a b : list Z) : Z :=
  match a, b with
  | x :: a', y :: b' => dot_from (acc + x * y) a' b'
  | _, _ => acc
  end.

Definition dot (a b : list Z) : Z := dot_from 0 a b.
Definition square (a : list Z) : Z := dot a a.

(** An integer that is not below the root. *)
Definition root_up (a : Z) : Z := Z.sqrt_up a.
(** An integer above the quotient of a by a positive b. *)
Definition over (a b : Z) : Z := a / b + 1.

Fixpoint map2 (f : Z -> Z -> Z) (a b : list Z) : list Z :=
  match a, b with
  | x :: a', y :: b' => f x y :: map2 f a' b'
  | _, _ => []
  end.

Definition count {A} (l : list A) : Z := Z.of_nat (length l).

(** ** Norms *)

(** What is left of an integer where [c] times [v] is taken away. *)
Definition coarse_row (c : Z) (r : list Z) : list Z := map (fun w => (w + c / 2) / c) r.
Definition coarse (c : Z) (rows : list (list Z)) : list (list Z) := map (coarse_row c) rows.

Definition cut_row (c : Z) (r : list Z) : Z := square (map (fun w => w - c * ((w + c / 2) / c)) r).
Definition total (l : list Z) : Z := fold_left Z.add l 0.
(** Not below the Frobenius norm of what rounding cuts off. *)
Definition cut (c : Z) (rows : list (list Z)) : Z := root_up (total (map (cut_row c) rows)).

Definition entry (v w : list Z * list Z) : Z := - dot (fst v) (fst w) - dot (snd v) (snd w).

Fixpoint beside (v : list Z * list Z) (others : list (list Z * list Z)) (acc : Z) : Z :=
  match others with
  | [] => acc
  | w :: rest => let e := entry v w in beside v rest (acc + e * e)
  end.

(** acc + the squared Frobenius norm of t I - V V' - F F', from pairs of a row of V and one of F. *)
Fixpoint residual_square (t : Z) (l : list (list Z * list Z)) (acc : Z) : Z :=
  match l with
  | [] => acc
  | v :: rest =>
      let e := t + entry v v in
      residual_square t rest (acc + e * e + 2 * beside v rest 0)
  end.

Definition all_of_length (n : nat) (rows : list (list Z)) : bool :=
  forallb (fun r => Nat.eqb (length r) n) rows.

Definition check_norm (den : Z) (rows : list (list Z)) (bound bound_den : Z) (w : witness) : bool :=
  Nat.eqb (length (factor w)) (length rows)
  && (0 <=? error w) && (0 <=? limit w) && (0 <=? divisor w)
  && (residual_square (t w) (combine (coarse (divisor w) rows) (factor w)) 0 <=? error w * error w)
  && (t w + error w <=? limit w * limit w)
  && ((divisor w * limit w + cut (divisor w) rows) * bound_den <=? bound * den).

(** ** Layers *)

Definition outputs (n : nat) (l : layer) : nat :=
  match l with
  | Dense _ _ rows _ => length rows
  | _ => n
  end.

Definition at_least_one (s : step) : bool := bound_den s <=? bound s.

Definition check_step (n : nat) (s : step) : bool :=
  (0 <? bound_den s) && (0 <=? bound s) &&
  match body s with
  | Dense inputs den rows bias =>
      Nat.eqb inputs n && (0 <? den) && all_of_length n rows
      && Nat.eqb (length bias) (length rows)
      && check_norm den rows (bound s) (bound_den s) (why s)
  | Scaling den scale shift =>
      (0 <? den) && Nat.eqb (length scale) n && Nat.eqb (length shift) n
      && forallb (fun a => Z.abs a * bound_den s <=? bound s * den) scale
  | Relu | Abs => at_least_one s
  | Leaky num den =>
      (0 <? den) && at_least_one s && (Z.abs num * bound_den s <=? bound s * den)
  | NActivation den low high =>
      (0 <? den) && at_least_one s && Nat.eqb (length low) n && Nat.eqb (length high) n
  | Sort groups size => at_least_one s && Nat.eqb (groups * size) n
  | Householder size normals =>
      at_least_one s && Nat.eqb (length normals * size) n && all_of_length size normals
      && forallb (fun v => 0 <? square v) normals
  end.

(** ** Evaluation on a grid *)

Fixpoint insert (a : Z) (l : list Z) : list Z :=
  match l with
  | [] => [a]
  | b :: rest => Z.min a b :: insert (Z.max a b) rest
  end.

Fixpoint sort (l : list Z) : list Z :=
  match l with
  | [] => []
  | a :: rest => insert a (sort rest)
  end.

Fixpoint sort_groups (groups size : nat) (l : list Z) : list Z :=
  match groups with
  | O => []
  | S k => sort (firstn size l) ++ sort_groups k size (skipn size l)
  end.

Definition reflect (v z : list Z) : list Z :=
  let b := Z.min (dot v z) 0 in
  let s := square v in
  map2 (fun x y => x - 2 * b * y / s) z v.

Fixpoint reflect_groups (size : nat) (normals : list (list Z)) (l : list Z) : list Z :=
  match normals with
  | [] => []
  | v :: rest => reflect v (firstn size l) ++ reflect_groups size rest (skipn size l)
  end.

(** A step, with the rows of a dense layer divided by [by_] and rounded, and what that cuts off. *)
Record prepared := Prepared { of : step; by_ : Z; rounded : list (list Z); lost : Z }.

Definition prepare_step (most : Z) (s : step) : prepared :=
  match body s with
  | Dense _ den rows _ =>
      let c := Z.max 1 (den / most) in Prepared s c (coarse c rows) (cut c rows)
  | _ => Prepared s 1 [] 0
  end.

(** Values, over [d], and how far they are, in l2 and over [d], from the real ones. *)
Definition state : Type := list Z * Z.

Definition apply (d : Z) (p : prepared) (s : state) : state :=
  let '(x, e) := s in
  let grown := over (bound (of p) * e) (bound_den (of p)) in
  let rounding := root_up (count x) in
  match body (of p) with
  | Dense _ den _ bias =>
      let y := map2 (fun sum b => (by_ p * sum + b * d) / den)
                 (map (fun r => dot r x) (rounded p)) bias in
      (y, grown + over (lost p * root_up (square x)) den + root_up (count y))
  | Scaling den scale shift =>
      (map2 (fun z b => (z + b * d) / den) (map2 Z.mul scale x) shift, grown + rounding)
  | Relu => (map (fun z => Z.max z 0) x, grown)
  | Leaky num den => (map (fun z => if z <? 0 then num * z / den else z) x, grown + rounding)
  | Abs => (map Z.abs x, grown)
  | NActivation den low high =>
      (map2 (fun z c => z - c) x
         (map2 (fun c h => 2 * Z.min c (h * d / den)) (map2 (fun z l => Z.max z (l * d / den)) x low)
            high),
       grown + 2 * rounding)
  | Sort groups size => (sort_groups groups size x, grown)
  | Householder size normals => (reflect_groups size normals x, grown + rounding)
  end.

Fixpoint evaluate (d : Z) (ps : list prepared) (s : state) : state :=
  match ps with
  | [] => s
  | p :: rest => evaluate d rest (apply d p s)
  end.

(** ** The claim *)

Fixpoint check_steps (n : nat) (l : list step) : bool :=
  match l with
  | [] => true
  | s :: rest => check_step n s && check_steps (outputs n (body s)) rest
  end.

Fixpoint width (n : nat) (l : list step) : nat :=
  match l with
  | [] => n
  | s :: rest => width (outputs n (body s)) rest
  end.

(** Numerator and denominator of the product of the bounds. *)
Definition bounds (l : list step) : Z := fold_right (fun s z => z * bound s) 1 l.
Definition bound_dens (l : list step) : Z := fold_right (fun s z => z * bound_den s) 1 l.

Definition head_rows (nw : network) : list (list Z) :=
  match body (head nw) with Dense _ _ rows _ => rows | _ => [] end.
Definition head_den (nw : network) : Z :=
  match body (head nw) with Dense _ den _ _ => den | _ => 0 end.
Definition is_dense (l : layer) : bool := match l with Dense _ _ _ _ => true | _ => false end.

Definition classes (nw : network) : nat := length (head_rows nw).

Definition pair (nw : network) (c j : nat) : Z := nth j (nth c (pairs nw) []) 0.

(** pair c j / pairs_den is at least the product of the bounds times |w_c - w_j|. *)
Definition check_pair (nw : network) (l d : Z) (c j : nat) : bool :=
  let gap := square (map2 Z.sub (nth c (head_rows nw) []) (nth j (head_rows nw) [])) in
  let left := pair nw c j * d * head_den nw in
  let right := l * pairs_den nw in
  Nat.eqb c j || ((0 <=? pair nw c j) && (right * right * gap <=? left * left)).

Definition check_pairs (nw : network) : bool :=
  let l := bounds (steps nw) in
  let d := bound_dens (steps nw) in
  let range := seq 0 (classes nw) in
  (0 <? pairs_den nw)
  && forallb (fun c => forallb (fun j => check_pair nw l d c j) range) range.

Definition check_network (nw : network) : bool :=
  check_steps (inputs nw) (steps nw)
  && check_step (width (inputs nw) (steps nw)) (head nw)
  && is_dense (body (head nw))
  && check_pairs nw.

(** A precision: the grid's denominator, and the network with its weights rounded. *)
Record precision := Precision { grid : Z; ready : list prepared }.

Definition prepare (nw : network) (grid_and_most : Z * Z) : precision :=
  let '(d, most) := grid_and_most in
  Precision d (map (prepare_step most) (steps nw ++ [head nw])).

Definition check_rival (nw : network) (r : row) (d : Z) (z : list Z) (off : Z) (j : nat) : bool :=
  let m := nth (class r) z 0 - nth j z 0 - off in
  Nat.eqb j (class r)
  || ((0 <? m) && (pair nw (class r) j * radius r * d <=? m * (pairs_den nw * radius_den r))).

Definition check_row_at (nw : network) (r : row) (p : precision) : bool :=
  let d := grid p in
  let x := map (fun a => a * d / input_den r) (input r) in
  let '(z, e) := evaluate d (ready p) (x, root_up (count x)) in
  (0 <? d)
  && forallb (check_rival nw r d z (over (3 * e) 2)) (seq 0 (classes nw)).

(** The first precision that suffices is used. *)
Definition check_row (nw : network) (ps : list precision) (r : row) : bool :=
  Nat.eqb (length (input r)) (inputs nw) && (0 <? input_den r) && (0 <? radius_den r)
  && Nat.ltb (class r) (classes nw)
  && existsb (check_row_at nw r) ps.

Definition check_rows (nw : network) (ps : list precision) (rows : list row) : bool :=
  forallb (check_row nw ps) rows.

(** The witnesses are those in the steps of the network; precisions are (grid, largest denominator
    of weights). *)
Definition check (nw : network) (rows : list row) (precisions : list (Z * Z)) : bool :=
  check_network nw && check_rows nw (map (prepare nw) precisions) rows.
