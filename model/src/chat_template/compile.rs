//! A template's source as instructions, with guards between them.
//!
//! The engine's fuel counts instructions, the text they make and the items they visit, but not what
//! lies inside a value: a list can hold another one a thousand times, or a namespace itself, and then
//! comparing or printing it is one instruction. So every instruction that makes a value is followed
//! by one that calls [`guard::MADE`] on it, and those that walk a stored value through are preceded
//! by one; see there for what holds then.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

use super::guard;

/// Tokens between two delimiters; the parser's and the compiler's stack grows with them.
const MAX_TAG: usize = 4096;
/// `elif` tags of a template; each is parsed inside the one before.
const MAX_ELIF: usize = 1024;
/// Stack of the thread that compiles: room for [`MAX_TAG`] and [`MAX_ELIF`] with unoptimised code.
const STACK: usize = 64 << 20;

/// A template ready to run.
#[derive(Debug)]
pub(super) struct Compiled {
    pub instructions: Instructions<'static>,
    pub blocks: BTreeMap<&'static str, Instructions<'static>>,
    /// Variables that it looks up and functions that it calls.
    pub reads: BTreeSet<&'static str>,
}

/// Compiles `source` on a thread of its own, whose stack fits what [`check`] lets through.
pub(super) fn compile(
    name: &'static str,
    source: &'static str,
    syntax: SyntaxConfig,
) -> Result<Compiled, Error> {
    let work = move || crate::quiet::quietly(|| compile_here(name, source, syntax));
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(work);
    let thread = thread.map_err(|error| refuse(format!("no thread to compile it on: {error}")))?;
    match thread.join() {
        Ok(Ok(compiled)) => compiled,
        Ok(Err(panic)) => Err(refuse(format!("the parser failed on it: {panic}"))),
        Err(_) => Err(refuse("the parser failed on it")),
    }
}

fn compile_here(
    name: &'static str,
    source: &'static str,
    syntax: SyntaxConfig,
) -> Result<Compiled, Error> {
    check(source, syntax.clone())?;
    let tree = parse(source, name, syntax)?;
    let mut generator = CodeGenerator::new(name, source);
    generator.compile_stmt(&tree);
    let (instructions, blocks) = generator.finish();
    let reads = [&instructions].into_iter().chain(blocks.values());
    let reads = reads.flat_map(names).collect();
    let guarded = |block: (_, Instructions<'static>)| (block.0, with_guards(&block.1));
    Ok(Compiled {
        instructions: with_guards(&instructions),
        blocks: blocks.into_iter().map(guarded).collect(),
        reads,
    })
}

/// What instructions look up by name.
fn names(instructions: &Instructions<'static>) -> Vec<&'static str> {
    let mut names = Vec::new();
    let mut at = 0;
    while let Some(instruction) = instructions.get(at) {
        if let Instruction::Lookup(name) | Instruction::CallFunction(name, _) = instruction {
            names.push(*name);
        }
        at += 1;
    }
    names
}

/// Refuses source on which parser and compiler would recurse too deep.
fn check(source: &str, syntax: SyntaxConfig) -> Result<(), Error> {
    let (mut tag, mut elif) = (0, 0);
    for token in tokenize(source, false, syntax) {
        let (token, span) = token?;
        match token {
            Token::VariableStart | Token::BlockStart | Token::TemplateData(_) => tag = 0,
            Token::Ident("elif") => elif += 1,
            _ => {}
        }
        tag += 1;
        let line = span.start_line;
        if tag > MAX_TAG {
            return Err(refuse(format!(
                "a tag has more than {MAX_TAG} words and signs (line {line} of the template)"
            )));
        }
        if elif > MAX_ELIF {
            return Err(refuse(format!(
                "more than {MAX_ELIF} times `elif` (line {line} of the template)"
            )));
        }
    }
    Ok(())
}

fn refuse(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::SyntaxError, detail)
}

/// A call of a guard on the top of the stack.
fn call(name: &'static str) -> Instruction<'static> {
    // The last number says that the filter's address is not kept.
    Instruction::ApplyFilter(name, Some(1), !0)
}

/// What comes before an instruction: guards of values that it walks through without fuel.
fn before(instruction: &Instruction) -> Vec<Instruction<'static>> {
    use Instruction as I;
    let walks = match instruction {
        I::SetAttr(_) => return vec![I::Swap, call(guard::KEPT), I::Swap],
        I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte | I::In | I::CompareAndPreserve(_) => true,
        I::ApplyFilter(name, ..) => guard::filter_walks(name),
        I::PerformTest(name, ..) => guard::test_walks(name),
        I::CallMethod(..) => true,
        _ => false,
    };
    match walks {
        true => vec![call(guard::WALKED)],
        false => vec![],
    }
}

/// Whether an instruction leaves a new value on the stack.
fn makes(instruction: &Instruction) -> bool {
    use Instruction as I;
    matches!(
        instruction,
        // The compiler computes with constants, and a repeated list is lazy.
        I::LoadConst(value) if value.as_object().is_some()
    ) || matches!(
        instruction,
        I::BuildMap(_)
            | I::BuildList(_)
            | I::BuildTuple(_)
            | I::Add
            | I::Mul
            | I::Slice
            | I::ApplyFilter(..)
            | I::CallFunction(..)
            | I::CallMethod(..)
            | I::CallObject(_)
    )
}

/// The same instructions with guards, and jumps that go where they went.
fn with_guards(plain: &Instructions<'static>) -> Instructions<'static> {
    let mut places = Vec::new();
    let mut place = 0;
    let mut at = 0;
    while let Some(instruction) = plain.get(at) {
        places.push(place);
        place += before(instruction).len() as u32 + 1 + u32::from(makes(instruction));
        at += 1;
    }
    // A jump to the end, or past it.
    let moved = |target: u32| *places.get(target as usize).unwrap_or(&place);

    let mut guarded = Instructions::new(plain.name(), plain.source());
    let mut at = 0;
    while let Some(instruction) = plain.get(at) {
        let mut run = before(instruction);
        run.push(with_jump(instruction.clone(), moved));
        if makes(instruction) {
            run.push(call(guard::MADE));
        }
        for instruction in run {
            match (plain.get_span(at), plain.get_line(at)) {
                (Some(span), _) => guarded.add_with_span(instruction, span),
                (None, Some(line)) => guarded.add_with_line(instruction, line as u16),
                (None, None) => guarded.add(instruction),
            };
        }
        at += 1;
    }
    guarded
}

fn with_jump(
    mut instruction: Instruction<'static>,
    moved: impl Fn(u32) -> u32,
) -> Instruction<'static> {
    use Instruction as I;
    match &mut instruction {
        I::Iterate(target)
        | I::Jump(target)
        | I::JumpIfFalse(target)
        | I::JumpIfFalseOrPop(target)
        | I::JumpIfTrueOrPop(target)
        | I::BuildMacro(_, target, _) => *target = moved(*target),
        _ => {}
    }
    instruction
}
