//! Writes mutants into Rust sources: small changes of what they do, each behind `crate::mutant(number)`, so that one build has all
//! of them and the environment chooses the one in force.
//!
//! `dtkafka-mutants LEFT-OUT FILE…` changes the files in place and prints every mutant as a line of JSON: its number, file, line
//! and what it is, and the bytes of the new file in which the compiler would complain of it. Numbers depend on the sources alone;
//! those in the file LEFT-OUT are not written. Tests, constants and what is only printed are left as they are.

use std::{collections::BTreeSet, fs, ops::Range};

use proc_macro2::Span;
use syn::{
    Arm, Attribute, BinOp, Block, Expr, ImplItemFn, Item, ItemFn, Pat, ReturnType, Signature, Stmt, Type,
    UnOp,
    spanned::Spanned,
    visit::{self, Visit},
};

/// A place of the source that is wrapped.
struct Edit {
    place: Range<usize>,
    before: String,
    after: String,
    mutants: Vec<usize>,
}

struct Mutant {
    line: usize,
    what: String,
    function: Range<usize>,
}

struct Planter<'a> {
    source: &'a str,
    first: usize,
    left_out: &'a BTreeSet<usize>,
    function: Range<usize>,
    /// Whether the function gives nothing back.
    is_unit: bool,
    mutants: Vec<Mutant>,
    edits: Vec<Edit>,
}

fn place(of: &impl Spanned) -> Range<usize> {
    of.span().byte_range()
}

fn is_only_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident("cfg") || attribute.path().is_ident("test"))
}

/// Whether a condition has a `let` that binds for what comes after it.
fn binds(condition: &Expr) -> bool {
    match condition {
        Expr::Let(_) => true,
        Expr::Binary(both) => matches!(both.op, BinOp::And(_)) && (binds(&both.left) || binds(&both.right)),
        _ => false,
    }
}

/// What stands for the operator instead.
fn others(operator: &BinOp) -> &'static [&'static str] {
    match operator {
        BinOp::Lt(_) => &["<=", ">="],
        BinOp::Le(_) => &["<", ">"],
        BinOp::Gt(_) => &[">=", "<="],
        BinOp::Ge(_) => &[">", "<"],
        BinOp::Eq(_) => &["!="],
        BinOp::Ne(_) => &["=="],
        BinOp::Add(_) => &["-"],
        BinOp::Sub(_) => &["+"],
        BinOp::Mul(_) => &["/"],
        BinOp::Div(_) => &["*"],
        BinOp::AddAssign(_) => &["-="],
        BinOp::SubAssign(_) => &["+="],
        _ => &[],
    }
}

/// What a function of this type may give back without doing anything.
fn values(output: &ReturnType) -> &'static [&'static str] {
    let ReturnType::Type(_, output) = output else { return &["()"] };
    let Type::Path(path) = &**output else { return &[] };
    let Some(last) = path.path.segments.last() else { return &[] };
    match last.ident.to_string().as_str() {
        "bool" => &["true", "false"],
        "Option" => &["None"],
        "u8" | "u16" | "u32" | "u64" | "usize" | "i8" | "i16" | "i32" | "i64" => &["0", "1"],
        "Vec" => &["Vec::new()"],
        "Result" => &["Ok(())"],
        "Duration" => &["std::time::Duration::ZERO"],
        _ => &[],
    }
}

impl Planter<'_> {
    fn text(&self, place: Range<usize>) -> &str {
        &self.source[place]
    }

    /// Wraps a place for the mutants of `what`; `wrap` gives what stands before and after it, and sees the calls that ask.
    fn add(
        &mut self,
        span: Span,
        place: Range<usize>,
        what: &[String],
        wrap: impl FnOnce(&[String]) -> (String, String),
    ) {
        let numbers: Vec<usize> =
            (0..what.len()).map(|index| self.first + self.mutants.len() + index).collect();
        for what in what {
            self.mutants.push(Mutant {
                line: span.start().line,
                what: what.split_whitespace().collect::<Vec<_>>().join(" "),
                function: self.function.clone(),
            });
        }
        let asked: Vec<String> = numbers
            .iter()
            .map(|number| {
                if self.left_out.contains(number) {
                    "false".into()
                } else {
                    format!("crate::mutant({number})")
                }
            })
            .collect();
        if numbers.iter().all(|number| self.left_out.contains(number)) {
            return;
        }
        let (before, after) = wrap(&asked);
        self.edits.push(Edit { place, before, after, mutants: numbers });
    }

    /// The expression, or another one.
    fn instead(&mut self, span: Span, of: Range<usize>, what: &[String], texts: &[String]) {
        self.add(span, of, what, |asked| {
            let mut before = String::from("(");
            for (asked, text) in asked.iter().zip(texts) {
                if asked != "false" {
                    before += &format!("if {asked} {{ {text} }} else ");
                }
            }
            (before + "{ ", " })".into())
        });
    }

    fn without(&mut self, statement: &Stmt, expression: &Expr) {
        let of = place(statement);
        let what = [format!("without `{}`", self.text(place(expression)))];
        self.add(statement.span(), of, &what, |asked| (format!("if !{} {{ ", asked[0]), " }".into()));
    }

    /// A condition that is neither composed nor compared.
    fn turned(&mut self, condition: &Expr) {
        if matches!(
            condition,
            Expr::Binary(_) | Expr::Let(_) | Expr::Unary(_) | Expr::Paren(_) | Expr::Lit(_)
        ) {
            return;
        }
        let what = [format!("not `{}`", self.text(place(condition)))];
        self.add(condition.span(), place(condition), &what, |asked| {
            (format!("({} != (", asked[0]), "))".into())
        });
    }

    fn operand(&mut self, of: &Expr, is_and: bool) {
        let nested = matches!(of, Expr::Binary(inner) if matches!(inner.op, BinOp::And(_)) == is_and
            && matches!(inner.op, BinOp::And(_) | BinOp::Or(_)));
        if nested || binds(of) {
            return;
        }
        let what = [format!("without `{}` among its like", self.text(place(of)))];
        self.add(of.span(), place(of), &what, |asked| {
            let asked = &asked[0];
            (if is_and { format!("({asked} || (") } else { format!("(!{asked} && (") }, "))".into())
        });
    }

    fn body(&mut self, signature: &Signature, block: &Block) {
        let before = std::mem::replace(&mut self.function, place(block));
        let was_unit = std::mem::replace(&mut self.is_unit, matches!(signature.output, ReturnType::Default));
        let empty = block.stmts.is_empty();
        let single = matches!(&block.stmts[..], [Stmt::Expr(Expr::Lit(_) | Expr::Path(_), None)]);
        if !empty && !single {
            let start = block.brace_token.span.open().byte_range().end;
            let values = values(&signature.output);
            let what: Vec<String> =
                values.iter().map(|value| format!("{} is {value}", signature.ident)).collect();
            if !values.is_empty() {
                self.add(signature.ident.span(), start..start, &what, |asked| {
                    let returns = asked.iter().zip(values).filter(|(asked, _)| *asked != "false");
                    (
                        returns.map(|(asked, value)| format!(" if {asked} {{ return {value}; }}")).collect(),
                        String::new(),
                    )
                });
            }
        }
        visit::visit_block(self, block);
        self.function = before;
        self.is_unit = was_unit;
    }
}

impl<'ast> Visit<'ast> for Planter<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Fn(ItemFn { attrs, sig, .. }) if is_only_for_tests(attrs) || sig.constness.is_some() => {}
            Item::Fn(ItemFn { sig, block, .. }) => self.body(sig, block),
            Item::Mod(module) if is_only_for_tests(&module.attrs) => {}
            Item::Impl(block) => {
                let printed = block.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
                if !is_only_for_tests(&block.attrs)
                    && !printed.is_some_and(|last| last.ident == "Debug" || last.ident == "Display")
                {
                    visit::visit_item_impl(self, block);
                }
            }
            Item::Mod(module) => visit::visit_item_mod(self, module),
            Item::Trait(definition) => visit::visit_item_trait(self, definition),
            _ => {}
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if function.sig.constness.is_none() && !is_only_for_tests(&function.attrs) {
            self.body(&function.sig, &function.block);
        }
    }

    fn visit_type(&mut self, _: &'ast Type) {}

    fn visit_pat(&mut self, _: &'ast Pat) {}

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if let Stmt::Expr(expression, end) = statement {
            let does = match expression {
                Expr::MethodCall(_) | Expr::Call(_) => end.is_some() || self.is_unit,
                Expr::Assign(_) | Expr::Try(_) | Expr::Await(_) => end.is_some(),
                Expr::Binary(both) => end.is_some() && !others(&both.op).is_empty(),
                _ => false,
            };
            if does {
                self.without(statement, expression);
            }
        }
        visit::visit_stmt(self, statement);
    }

    fn visit_expr(&mut self, expression: &'ast Expr) {
        match expression {
            Expr::Binary(both) => match both.op {
                BinOp::And(_) | BinOp::Or(_) => {
                    let is_and = matches!(both.op, BinOp::And(_));
                    self.operand(&both.left, is_and);
                    self.operand(&both.right, is_and);
                }
                _ => {
                    let (left, right) = (self.text(place(&both.left)), self.text(place(&both.right)));
                    let operator = self.text(place(&both.op));
                    let others = others(&both.op);
                    let what: Vec<String> = others
                        .iter()
                        .map(|other| format!("`{other}` for `{operator}` in `{}`", self.text(place(both))))
                        .collect();
                    let texts: Vec<String> =
                        others.iter().map(|other| format!("{left} {other} {right}")).collect();
                    if !what.is_empty() {
                        self.instead(both.op.span(), place(both), &what, &texts);
                    }
                }
            },
            // Of a number `!` takes the bits, and nothing that is true or false can stand for it.
            Expr::Unary(unary)
                if matches!(unary.op, UnOp::Not(_)) && !matches!(*unary.expr, Expr::Lit(_)) =>
            {
                let what = [format!("not `{}`", self.text(place(unary)))];
                self.add(unary.span(), place(unary), &what, |asked| {
                    (format!("({} != ", asked[0]), ")".into())
                });
            }
            Expr::If(choice) => self.turned(&choice.cond),
            Expr::While(circle) => self.turned(&circle.cond),
            Expr::MethodCall(call) if call.method == "min" || call.method == "max" => {
                let other = if call.method == "min" { "max" } else { "min" };
                let all = place(call);
                let name = place(&call.method);
                let text = format!(
                    "{}{other}{}",
                    &self.source[all.start..name.start],
                    &self.source[name.end..all.end]
                );
                let what = [format!("`{other}` in `{}`", self.text(all.clone()))];
                self.instead(call.method.span(), all, &what, &[text]);
            }
            Expr::Match(choice) => {
                let rest =
                    choice.arms.iter().any(|arm| matches!(arm.pat, Pat::Wild(_)) && arm.guard.is_none());
                for arm in &choice.arms {
                    self.arm(arm, rest);
                }
            }
            _ => {}
        }
        visit::visit_expr(self, expression);
    }
}

impl Planter<'_> {
    fn arm(&mut self, arm: &Arm, has_rest: bool) {
        let pattern = self.text(place(&arm.pat)).to_owned();
        match &arm.guard {
            Some((_, guard)) if !binds(guard) => {
                let what = [format!("never `{pattern}`"), format!("`{pattern}` without its guard")];
                self.add(guard.span(), place(guard), &what, |asked| {
                    (format!("!{} && ({} || (", asked[0], asked[1]), "))".into())
                });
            }
            None if has_rest && !matches!(arm.pat, Pat::Wild(_)) => {
                let end = place(&arm.pat).end;
                let what = [format!("never `{pattern}`")];
                self.add(arm.pat.span(), end..end, &what, |asked| {
                    (format!(" if !{}", asked[0]), String::new())
                });
            }
            _ => {}
        }
    }
}

/// Writes the source with its edits; where each stands then.
fn written(source: &str, edits: &[Edit]) -> (String, Vec<Range<usize>>) {
    // Outer before inner; at one place, those that came first are outer.
    let mut order: Vec<usize> = (0..edits.len()).collect();
    order.sort_by_key(|index| (edits[*index].place.start, usize::MAX - edits[*index].place.end));
    let mut new = String::new();
    let mut stand = vec![0..0; edits.len()];
    let mut open: Vec<usize> = Vec::new();
    let mut at = 0;
    let close = |open: &mut Vec<usize>,
                 new: &mut String,
                 at: &mut usize,
                 until: usize,
                 stand: &mut Vec<Range<usize>>| {
        while let Some(index) = open.last().copied() {
            let end = edits[index].place.end;
            if end > until {
                break;
            }
            open.pop();
            new.push_str(&source[*at..end]);
            *at = end;
            new.push_str(&edits[index].after);
            stand[index].end = new.len();
        }
    };
    for index in order {
        let edit = &edits[index];
        close(&mut open, &mut new, &mut at, edit.place.start, &mut stand);
        new.push_str(&source[at..edit.place.start]);
        at = edit.place.start;
        stand[index].start = new.len();
        new.push_str(&edit.before);
        open.push(index);
    }
    close(&mut open, &mut new, &mut at, source.len(), &mut stand);
    new.push_str(&source[at..]);
    (new, stand)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let left_out = fs::read_to_string(arguments.next().unwrap()).unwrap_or_default();
    let left_out: BTreeSet<usize> =
        left_out.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let mut first = 1;
    for file in arguments {
        let source = fs::read_to_string(&file).unwrap();
        let parsed = syn::parse_file(&source).unwrap_or_else(|error| panic!("{file}: {error}"));
        let function = 0..source.len();
        let mut planter = Planter {
            source: &source,
            first,
            left_out: &left_out,
            function,
            is_unit: false,
            mutants: Vec::new(),
            edits: Vec::new(),
        };
        planter.visit_file(&parsed);
        let (new, stand) = written(&source, &planter.edits);
        fs::write(&file, new).unwrap();
        for (edit, stand) in planter.edits.iter().zip(&stand) {
            for number in edit.mutants.iter().filter(|number| !left_out.contains(number)) {
                let mutant = &planter.mutants[number - first];
                let function = serde_json::json!([mutant.function.start, mutant.function.end]);
                let mutant = serde_json::json!({
                    "number": number, "file": file, "line": mutant.line, "what": mutant.what,
                    "bytes": [stand.start, stand.end], "inside": stand.start + edit.before.len(),
                    "source": [edit.place.start, edit.place.end], "function": function,
                });
                println!("{mutant}");
            }
        }
        first += planter.mutants.len();
    }
}
