(* Coq's integers as those of zarith. Trusted, with zarith itself. *)

include Z

(* Constructors and cases of Coq's positive numbers and integers. *)
let twice p = shift_left p 1
let twice_plus_one p = succ (twice p)

let case_positive odd even one_ p =
  if equal p one then one_ ()
  else
    let half = shift_right p 1 in
    if is_odd p then odd half else even half

let case zero_ positive negative z =
  let s = sign z in
  if s = 0 then zero_ () else if s > 0 then positive z else negative (neg z)

(* The quotient is rounded down, and 0 where the divisor is; the root is rounded down, and 0 of
   negative numbers. *)
let quotient a b = if equal b zero then zero else fdiv a b
let root a = if sign a < 0 then zero else sqrt a
