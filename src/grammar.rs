//! What a reply must look like: a JSON schema, a regular expression or a grammar -> the tokens that may
//! come next.
//!
//! What it is: `response_format`, checked and compiled by the crate `llguidance` for one vocabulary, and
//! the state of one reply. What it is not: a sampler; it only says of each id whether it may be drawn.
//! Formats come from callers: their size and nesting, and the work of compiling them and of every mask
//! are limited. Control tokens are in no format; where a reply may end, its end token is allowed.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Longest text of a format, in bytes.
pub const MAX_FORMAT_BYTES: usize = 256 << 10;
/// Deepest nesting of a schema.
pub const MAX_DEPTH: usize = 64;
/// Longest regular expression, in bytes; and most classes of characters in one that ignores their case,
/// each of which costs milliseconds.
pub const MAX_REGEX_BYTES: usize = 4096;
const MAX_FOLDED_CLASSES: usize = 16;
/// Longest text of a grammar, in bytes; and most lines of it, references of a schema: the compiler is
/// recursive in both.
pub const MAX_GRAMMAR_BYTES: usize = 16 << 10;
const MAX_LINKS: usize = 512;
/// Stack of the thread that compiles a format.
const STACK_BYTES: usize = 64 << 20;
/// Longest reason that is told of a format that cannot be compiled, in bytes.
const MAX_REASON_BYTES: usize = 800;

/// What a reply must look like, as a caller says it.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// Any JSON object.
    JsonObject,
    /// A JSON value that this schema describes.
    Schema(Value),
    /// A text that this regular expression matches as a whole (Rust's syntax).
    Regex(String),
    /// A text of this grammar (llguidance's variant of Lark).
    Grammar(String),
}

impl Format {
    /// Reads `{"type": "text"}` (`None`), `{"type": "json_object"}`, `{"type": "json_schema",
    /// "json_schema": {"schema": ...}}`, `{"type": "regex", "regex": "..."}` or `{"type": "grammar",
    /// "grammar": "..."}`.
    ///
    /// # Errors
    /// `Option` with the key `response_format`, naming the field.
    pub fn parse(value: &Value) -> Result<Option<Format>> {
        let bytes = value.to_string().len();
        if bytes > MAX_FORMAT_BYTES {
            return Err(wrong(format!("{bytes} bytes; {MAX_FORMAT_BYTES} are allowed")));
        }
        let text = |field: &str| match value.get(field).and_then(Value::as_str) {
            Some(text) => Ok(text.to_string()),
            None => Err(wrong(format!("wants the text `{field}`"))),
        };
        match value.get("type").and_then(Value::as_str) {
            Some("text") => Ok(None),
            Some("json_object") => Ok(Some(Format::JsonObject)),
            Some("json_schema") => schema(value).map(|schema| Some(Format::Schema(schema))),
            Some("regex") => {
                let regex = text("regex")?;
                check_regex(&regex)?;
                Ok(Some(Format::Regex(regex)))
            }
            Some("grammar") => {
                let grammar = text("grammar")?;
                check_grammar(&grammar)?;
                Ok(Some(Format::Grammar(grammar)))
            }
            _ => {
                Err(wrong("`type` is one of text, json_object, json_schema, regex, grammar".into()))
            }
        }
    }

    /// The value that `parse` reads as this.
    pub fn to_json(&self) -> Value {
        match self {
            Format::JsonObject => json!({ "type": "json_object" }),
            Format::Schema(schema) => {
                json!({ "type": "json_schema", "json_schema": { "schema": schema } })
            }
            Format::Regex(regex) => json!({ "type": "regex", "regex": regex }),
            Format::Grammar(grammar) => json!({ "type": "grammar", "grammar": grammar }),
        }
    }
}

fn schema(value: &Value) -> Result<Value> {
    let Some(schema) = value.get("json_schema").and_then(|outer| outer.get("schema")) else {
        return Err(wrong("wants `json_schema` with a `schema`".into()));
    };
    if !(schema.is_object() || schema.is_boolean()) {
        return Err(wrong("`json_schema.schema` is neither an object nor true or false".into()));
    }
    let mut num_links = 0;
    check_schema(schema, MAX_DEPTH, &mut num_links)?;
    Ok(schema.clone())
}

/// The regular expressions of a schema, how many references it has, and that lists and objects are nested
/// at most `levels` deep.
fn check_schema(value: &Value, levels: usize, num_links: &mut usize) -> Result<()> {
    if levels == 0 && (value.is_array() || value.is_object()) {
        return Err(wrong(format!("`json_schema.schema` is nested more than {MAX_DEPTH} deep")));
    }
    let levels = levels.saturating_sub(1);
    let Value::Object(fields) = value else {
        let mut items = value.as_array().into_iter().flatten();
        return items.try_for_each(|item| check_schema(item, levels, num_links));
    };
    for (key, inner) in fields {
        match (key.as_str(), inner) {
            ("pattern", Value::String(regex)) => check_regex(regex)?,
            ("patternProperties", Value::Object(inner)) => {
                inner.keys().try_for_each(|regex| check_regex(regex))?;
            }
            ("$ref", _) => *num_links += 1,
            _ => {}
        }
        check_schema(inner, levels, num_links)?;
    }
    if *num_links > MAX_LINKS {
        return Err(wrong(format!("more than {MAX_LINKS} of `$ref`")));
    }
    Ok(())
}

fn check_regex(regex: &str) -> Result<()> {
    if regex.len() > MAX_REGEX_BYTES {
        let bytes = regex.len();
        return Err(wrong(format!("a regex of {bytes} bytes; {MAX_REGEX_BYTES} are allowed")));
    }
    let flags = regex.split("(?").skip(1);
    let folds = flags.map(|rest| rest.split(|c: char| !c.is_ascii_alphabetic()).next());
    check_folding(regex, folds.flatten().any(|flags| flags.contains('i')))
}

/// Classes of characters without their case, if `folds`.
fn check_folding(text: &str, folds: bool) -> Result<()> {
    let classes = ["[", "\\p", "\\P"].map(|class| text.matches(class).count());
    if folds && classes.iter().sum::<usize>() > MAX_FOLDED_CLASSES {
        let reason = format!("more than {MAX_FOLDED_CLASSES} classes whose case is ignored");
        return Err(wrong(reason));
    }
    Ok(())
}

fn check_grammar(grammar: &str) -> Result<()> {
    if grammar.len() > MAX_GRAMMAR_BYTES {
        let bytes = grammar.len();
        return Err(wrong(format!("a grammar of {bytes} bytes; {MAX_GRAMMAR_BYTES} are allowed")));
    }
    // Conditions nest without a limit of the crate's own; ids would let control tokens in.
    if let Some(refused) = ["%if", "<["].into_iter().find(|refused| grammar.contains(refused)) {
        return Err(wrong(format!("`{refused}` is not for grammars here")));
    }
    if grammar.lines().count() > MAX_LINKS || grammar.matches("$ref").count() > MAX_LINKS {
        return Err(wrong(format!("a grammar of more than {MAX_LINKS} lines or `$ref`")));
    }
    check_folding(grammar, grammar.contains("/i") || grammar.contains("(?"))
}

fn wrong(reason: String) -> Error {
    Error::Option { key: "response_format".into(), reason }
}

/// A vocabulary, ready for formats. Takes some tenths of a second to make for 150,000 tokens, and
/// some ten MB. Any thread may use it.
pub struct Grammars {
    factory: ParserFactory,
}

impl Grammars {
    /// `tokens` (`[ids]`): the bytes of each id, empty for one that no reply may hold. `end_id`: drawn
    /// where a reply ends.
    ///
    /// # Errors
    /// `EngineFailed` where the vocabulary has no such id or the crate refuses it.
    pub fn new(mut tokens: Vec<Vec<u8>>, end_id: u32) -> Result<Grammars> {
        for bytes in &mut tokens {
            // The crate takes a token of this first byte, which is in no UTF-8, for a control token.
            if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
                bytes.clear();
            }
        }
        let refused = |reason: String| Error::EngineFailed { reason };
        let Some(end) = tokens.get_mut(end_id as usize) else {
            return Err(refused(format!("no token {end_id} to end a reply with")));
        };
        *end = b"\xff<end>".to_vec();
        let info = TokRxInfo::new(tokens.len() as u32, end_id);
        let trie = TokTrie::from(&info, &tokens);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|error| refused(first_line(&error)))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.initial_lexer_fuel = 500_000;
        limits.max_grammar_size = 100_000;
        limits.max_lexer_states = 50_000;
        limits.verbose_errors = false;
        Ok(Grammars { factory })
    }

    /// The state of a reply that must be of `format`, at its beginning.
    ///
    /// # Errors
    /// `Option` with the key `response_format` that says what of the format cannot be had.
    pub fn begin(&self, format: &Format) -> Result<GrammarState> {
        let grammar = match format {
            Format::JsonObject => TopLevelGrammar::from_json_schema(json!({ "type": "object" })),
            Format::Schema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Format::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Format::Grammar(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        };
        // The crate's own bugs end in an error here, not in a panic; and what nests, nests on a stack that
        // is large enough for all that the limits let through.
        let compile = || {
            llguidance::panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.factory.create_parser(grammar)
            }))
        };
        let parser = std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
            let thread = builder.spawn_scoped(scope, compile);
            thread.map(|thread| thread.join())
        });
        let no_thread = |reason: &str| wrong(format!("cannot be compiled: {reason}"));
        let parser = parser.map_err(|error| no_thread(&error.to_string()))?;
        let parser = parser.map_err(|_| no_thread("its thread panicked"))?;
        let matcher = Matcher::new(Ok(parser.map_err(|error| wrong(first_line(&error)))?));
        match matcher.get_error() {
            Some(error) => Err(wrong(shortened(&error))),
            None => Ok(GrammarState { matcher, allowed: None }),
        }
    }
}

fn first_line(error: &dyn std::fmt::Display) -> String {
    shortened(&error.to_string())
}

/// The first line, and what a regex's parser says behind its drawing, each at most so long: the crate's
/// errors may quote the whole format, or a backtrace.
fn shortened(reason: &str) -> String {
    let mut lines = reason.lines();
    let first = lines.next().unwrap_or_default();
    let why = lines.find(|line| line.starts_with("error: ")).unwrap_or_default();
    let told = [first, why]
        .map(|line| -> String { line.trim_end().chars().take(MAX_REASON_BYTES / 8).collect() });
    told.join(" ").trim_end().to_string()
}

/// One reply on its way. One thread at a time; a clone goes on by itself.
#[derive(Clone)]
pub struct GrammarState {
    matcher: Matcher,
    /// What may come next, once it is known.
    allowed: Option<Result<SimpleVob>>,
}

impl GrammarState {
    /// Finds out what may come next, unless it is known. The costly part: it can be done while the
    /// model computes.
    pub fn prepare(&mut self) {
        if self.allowed.is_none() {
            let allowed = self.matcher.compute_mask_or_eos();
            self.allowed = Some(allowed.map_err(|error| wrong(first_line(&error))));
        }
    }

    /// Sets the logits (`[ids]`) of all tokens that may not come next to minus infinity.
    ///
    /// # Errors
    /// `Option` with the key `response_format` where what may come next costs more than is allowed.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<()> {
        let words = self.allowed()?.as_slice();
        let mut chunks = logits.chunks_mut(u32::BITS as usize);
        for (chunk, word) in chunks.by_ref().zip(words) {
            for (bit, logit) in chunk.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        // Ids beyond the vocabulary.
        chunks.flatten().for_each(|logit| *logit = f32::NEG_INFINITY);
        Ok(())
    }

    /// The ids that may come next; the end's alone where the reply is complete.
    ///
    /// # Errors
    /// As `mask`.
    pub fn allowed_ids(&mut self) -> Result<Vec<u32>> {
        Ok(self.allowed()?.to_list())
    }

    fn allowed(&mut self) -> Result<&SimpleVob> {
        self.prepare();
        match &self.allowed {
            Some(Ok(allowed)) => Ok(allowed),
            Some(Err(error)) => Err(error.clone()),
            None => Err(wrong("nothing is known of the next token".into())),
        }
    }

    /// Takes a token of the reply that was allowed.
    ///
    /// # Errors
    /// `Option` with the key `response_format` for one that was not.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        self.allowed = None;
        self.matcher.consume_token(id).map_err(|error| wrong(first_line(&error)))
    }

    /// Nothing more can come: the reply is complete.
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }
}

impl std::fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarState").field("is_over", &self.is_over()).finish_non_exhaustive()
    }
}
