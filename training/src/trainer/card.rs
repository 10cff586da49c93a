//! Model cards: what a trained folder says about itself on the Hub.

/// Of adapters on `base`.
pub(super) fn adapter_card(summary: &str, base: &str) -> String {
    format!(
        "---\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- sppo\n- alignment\n- lora\n---\n\n# A LoRA adapter trained with sppo\n\n{}\n\nLoad it on its base, {base}, with PEFT (`PeftModel.from_pretrained`) or vLLM, or make a whole model of both with `sppo merge`.\n",
        summary
    )
}

/// Of a whole model.
pub(super) fn model_card(summary: &str) -> String {
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- sppo\n- alignment\n---\n\n# A Llama trained with sppo\n\n{}\n\nLoad it with transformers (`AutoModelForCausalLM.from_pretrained`) or vLLM.\n",
        summary
    )
}
