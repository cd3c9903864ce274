(** The verified checker as an OCaml program. What is trusted of the translation: Coq's extraction,
    and the lines below, by which Coq's integers become those of zarith (program/integers.ml).
    Natural numbers stay as they are. *)

Require Import ZArith Extraction ExtrOcamlBasic.
From Robustcert Require Import Checker.

Extract Inductive positive => "Integers.t"
  ["Integers.twice_plus_one" "Integers.twice" "Integers.one"] "Integers.case_positive".
Extract Inductive Z => "Integers.t" ["Integers.zero" "" "Integers.neg"] "Integers.case".

Extract Inlined Constant Pos.succ => "Integers.succ".
Extract Inlined Constant Z.add => "Integers.add".
Extract Inlined Constant Z.sub => "Integers.sub".
Extract Inlined Constant Z.mul => "Integers.mul".
Extract Inlined Constant Z.opp => "Integers.neg".
Extract Inlined Constant Z.succ => "Integers.succ".
Extract Inlined Constant Z.pred => "Integers.pred".
Extract Inlined Constant Z.abs => "Integers.abs".
Extract Inlined Constant Z.min => "Integers.min".
Extract Inlined Constant Z.max => "Integers.max".
Extract Inlined Constant Z.leb => "Integers.leq".
Extract Inlined Constant Z.ltb => "Integers.lt".
Extract Inlined Constant Z.eqb => "Integers.equal".
Extract Inlined Constant Z.compare =>
  "(fun a b -> let c = Integers.compare a b in if c = 0 then Eq else if c < 0 then Lt else Gt)".
Extract Inlined Constant Z.div => "Integers.quotient".
Extract Inlined Constant Z.sqrt => "Integers.root".

Extraction "program/checker.ml" check check_network check_row prepare.
