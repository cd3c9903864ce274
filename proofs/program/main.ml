(* The program around the verified function: it reads the text of proofs/README.md and calls it.
   Trusted, as it says what the numbers of the text are. *)

open Checker

exception Malformed of string

let file = if Array.length Sys.argv = 2 then Sys.argv.(1) else (prerr_endline "usage: verified-checker FILE"; exit 2)

(* The words of the file, one after another. *)
let channel = open_in_bin file
let buffer = Buffer.create 64
let rec word () =
  match input_char channel with
  | ' ' | '\n' -> if Buffer.length buffer = 0 then word () else taken ()
  | c -> Buffer.add_char buffer c; word ()
  | exception End_of_file -> if Buffer.length buffer = 0 then raise (Malformed "it ends early") else taken ()
and taken () = let found = Buffer.contents buffer in Buffer.clear buffer; found

let expect name =
  let found = word () in
  if found <> name then raise (Malformed (Printf.sprintf "expected %S, got %S" name found))

let integer () =
  let found = word () in
  let digit i c = (c >= '0' && c <= '9') || (i = 0 && c = '-' && String.length found > 1) in
  String.iteri (fun i c -> if not (digit i c) then raise (Malformed (Printf.sprintf "%S is no integer" found))) found;
  Integers.of_string found

(* A number of things, at most 2^24. *)
let size () =
  let found = integer () in
  if Integers.sign found < 0 || Integers.gt found (Integers.of_int 16777216) then raise (Malformed "a size out of range");
  Integers.to_int found

let nat n = let rec go acc k = if k = 0 then acc else go (S acc) (k - 1) in go O n

let repeated n read = let rec go acc k = if k = 0 then List.rev acc else let one = read () in go (one :: acc) (k - 1) in go [] n
let integers n = repeated n integer

let nothing = { divisor = Integers.zero; t = Integers.zero; factor = []; error = Integers.zero; limit = Integers.zero }

let step () =
  expect "bound";
  let bound = integer () in
  let bound_den = integer () in
  let made body why = { body; bound; bound_den; why } in
  match word () with
  | "dense" ->
      let inputs = size () in
      let outputs = size () in
      let den = integer () in
      let rows = repeated outputs (fun () -> integers inputs) in
      let bias = integers outputs in
      expect "witness";
      let divisor = integer () in
      let t = integer () in
      let error = integer () in
      let limit = integer () in
      let factor = repeated outputs (fun () -> integers (size ())) in
      made (Dense (nat inputs, den, rows, bias)) { divisor; t; factor; error; limit }
  | "scaling" ->
      let n = size () in
      let den = integer () in
      let scale = integers n in
      let shift = integers n in
      made (Scaling (den, scale, shift)) nothing
  | "relu" -> made Relu nothing
  | "leaky" ->
      let num = integer () in
      let den = integer () in
      made (Leaky (num, den)) nothing
  | "abs" -> made Abs nothing
  | "n" ->
      let n = size () in
      let den = integer () in
      let low = integers n in
      let high = integers n in
      made (NActivation (den, low, high)) nothing
  | "sort" ->
      let groups = size () in
      let members = size () in
      made (Sort (nat groups, nat members)) nothing
  | "householder" ->
      let groups = size () in
      let members = size () in
      let normals = repeated groups (fun () -> integers members) in
      made (Householder (nat members, normals)) nothing
  | other -> raise (Malformed (Printf.sprintf "unknown layer %S" other))

let row inputs () =
  let input_den = integer () in
  let input = integers inputs in
  let class_ = nat (size ()) in
  let radius = integer () in
  let radius_den = integer () in
  { input; input_den; class0 = class_; radius; radius_den }

let problem () =
  expect "robustcert-verified";
  expect "1";
  expect "inputs";
  let inputs = size () in
  expect "steps";
  let steps = repeated (size ()) step in
  expect "head";
  let head = step () in
  expect "pairs";
  let classes = size () in
  let pairs_den = integer () in
  let pairs = repeated classes (fun () -> integers classes) in
  expect "precisions";
  let precisions = repeated (size ()) (fun () -> let grid = integer () in let most = integer () in (grid, most)) in
  expect "rows";
  let rows = repeated (size ()) (row inputs) in
  expect "end";
  ({ inputs = nat inputs; steps; head; pairs_den; pairs }, rows, precisions)

(* Which part fails, where the answer is no: for people, and proved of nothing. *)
let explain network rows precisions =
  if not (check_network network) then print_endline "network"
  else
    let ready = List.map (prepare network) precisions in
    List.iteri (fun i r -> if not (check_row network ready r) then Printf.printf "row %d\n" i) rows

let () =
  match problem () with
  | exception Malformed what -> Printf.eprintf "%s: %s\n" file what; exit 2
  | network, rows, precisions ->
      if check network rows precisions then (Printf.printf "verified %d\n" (List.length rows); exit 0)
      else (explain network rows precisions; print_endline "refused"; exit 1)
