//! Chat templates: texts in Jinja by which a conversation becomes one text.
//!
//! The formats that mergekit has names for are written here anew, from what their publishers say of them.

use crate::checkpoint::{Checkpoint, SMALL_LIMIT, read_json, read_text};
use serde_json::Value;

/// The file in which a template stands beside a tokenizer.
pub(in crate::recipe) const FILE: &str = "chat_template.jinja";
/// The file in which it stood before.
pub(in crate::recipe) const CONFIG: &str = "tokenizer_config.json";

const CHATML: &str = "{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
";
const LLAMA3: &str = "{{- bos_token }}
{%- for message in messages -%}
{{ '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ message.content | trim ~ '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
";
const MISTRAL: &str = "{{- bos_token }}
{%- set system = namespace(text='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{%- set system.text = message.content ~ '\\n\\n' -%}
{%- elif message.role == 'user' -%}{{ '[INST] ' ~ system.text ~ message.content ~ ' [/INST]' }}{%- set system.text = '' -%}
{%- else -%}{{ ' ' ~ message.content ~ eos_token }}{%- endif -%}
{%- endfor -%}
";
const ALPACA: &str = "{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ message.content ~ '\\n\\n' }}
{%- elif message.role == 'user' -%}{{ '### Instruction:\\n' ~ message.content ~ '\\n\\n' }}
{%- else -%}{{ '### Response:\\n' ~ message.content ~ eos_token ~ '\\n\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}
";
const EXAONE: &str = "{%- for message in messages -%}
{{ '[|' ~ message.role ~ '|]' ~ message.content }}
{{- '\\n' if message.role == 'user' else '[|endofturn|]\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[|assistant|]' }}{%- endif -%}
";

/// The names of known templates.
const NAMES: [(&str, &str); 5] =
    [("alpaca", ALPACA), ("chatml", CHATML), ("exaone", EXAONE), ("llama3", LLAMA3), ("mistral", MISTRAL)];

/// The template that a recipe's text means: a known one's name, or Jinja; none if it is neither.
pub(in crate::recipe) fn named(text: &str) -> Option<&str> {
    let known = NAMES.iter().find(|(name, _)| *name == text).map(|(_, template)| *template);
    // Shorter texts and those that put nothing in are slips of a name.
    known.or((text.len() >= 20 && text.contains('{')).then_some(text))
}

/// The names of the known templates.
pub(in crate::recipe) fn names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|(name, _)| *name)
}

/// A model's own template.
fn of(model: &Checkpoint) -> Option<String> {
    let layout = model.layout();
    let root = layout.is_folder.then_some(&layout.root)?;
    if let Ok(text) = read_text(&root.join(FILE), SMALL_LIMIT) {
        return Some(text);
    }
    match read_json(&root.join(CONFIG)).ok()?.get("chat_template")? {
        Value::String(text) => Some(text.clone()),
        // Several with names, of which one may be the default.
        Value::Array(list) => {
            let default = list.iter().find(|entry| entry["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// The template that most models have, the first of equally many; none if none has one.
pub(in crate::recipe) fn most_common<'m>(models: impl Iterator<Item = &'m Checkpoint>) -> Option<String> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for template in models.filter_map(of) {
        let template = template.trim();
        match counts.iter_mut().find(|(known, _)| known == template) {
            Some((_, count)) => *count += 1,
            None if template.is_empty() => {}
            None => counts.push((template.to_owned(), 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(template, _)| template)
}
