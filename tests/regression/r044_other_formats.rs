//! Folders with weights or a tokenizer in another format, or with pointers instead of files, were
//! refused without a word on what to do.

use std::fs;

use crate::cli::Place;

const GENERATE: &str = "generate --model llama --prompts p.jsonl --out r.jsonl";

fn place() -> Place {
    let place = Place::with_model();
    place.write("p.jsonl", "{\"prompt\": \"a\"}\n");
    place
}

/// A place whose model has `files` instead of its weights.
fn with_weights(files: &[&str]) -> Place {
    let place = place();
    for name in [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ] {
        fs::remove_file(place.path(&format!("llama/{name}"))).unwrap();
    }
    files
        .iter()
        .for_each(|name| place.write(&format!("llama/{name}"), "x"));
    place
}

#[test]
fn other_weights_are_named_with_the_way_to_convert_them() {
    let neither = "llama holds neither model.safetensors nor model.safetensors.index.json";
    let save = "save_pretrained(";
    for (files, parts) in [
        (&["pytorch_model.bin"][..], ["pytorch_model.bin", save]),
        (
            &[
                "pytorch_model-00001-of-00002.bin",
                "pytorch_model.bin.index.json",
            ],
            ["PyTorch's format", save],
        ),
        (&["tiny.Q4_K_M.gguf"], ["tiny.Q4_K_M.gguf", "gguf_file=f"]),
        (
            &["consolidated.00.pth", "params.json"],
            ["Meta's own format", "convert_llama_weights_to_hf"],
        ),
        (
            &["model-00001-of-00002.safetensors"],
            [
                "model.safetensors.index.json, which lists them, is missing",
                "download",
            ],
        ),
        (
            &["weights.safetensors"],
            ["weights.safetensors", "rename it to model.safetensors"],
        ),
    ] {
        let place = with_weights(files);
        place.refused(GENERATE, &[neither, parts[0], parts[1]]);
        fs::remove_file(place.path("llama/config.json")).unwrap();
        place.refused(
            GENERATE,
            &[
                "llama/config.json",
                "a model folder needs a config.json",
                parts[0],
                parts[1],
            ],
        );
    }
}

#[test]
fn pointers_of_git_lfs_are_told() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    for file in ["model-00001-of-00002.safetensors", "tokenizer.json"] {
        let place = place();
        place.write(&format!("llama/{file}"), pointer);
        place.refused(GENERATE, &[file, "Git LFS pointer", "git lfs pull"]);
    }
}

#[test]
fn what_text_lacks_is_told() {
    let place = place();
    fs::remove_file(place.path("llama/tokenizer.json")).unwrap();
    place.refused(
        GENERATE,
        &["llama has no tokenizer.json (its chat template is there)"],
    );
    place.write("llama/tokenizer.model", "x");
    place.refused(
        GENERATE,
        &[
            "tokenizer.model is there, which is not read",
            "AutoTokenizer",
        ],
    );
    place.edit("llama/tokenizer_config.json", |c| {
        c.as_object_mut().unwrap().remove("chat_template");
    });
    place.refused(
        GENERATE,
        &[
            "llama has no tokenizer.json and no chat template",
            "AutoTokenizer",
        ],
    );
    place.copy_model("other");
    fs::copy(
        place.path("other/tokenizer.json"),
        place.path("llama/tokenizer.json"),
    )
    .unwrap();
    let parts = [
        "llama has no chat template",
        "--chat-template FILE",
        "model.chat_template",
        "--raw",
    ];
    place.refused(GENERATE, &parts);
    place.write(
        "pairs.jsonl",
        "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n",
    );
    place.refused(
        "score --model llama --data pairs.jsonl --out s.jsonl",
        &parts[..2],
    );
}

#[test]
fn a_file_is_no_folder() {
    let place = place();
    let model = "llama/model-00001-of-00002.safetensors";
    place.refused(
        &GENERATE.replace("llama", model),
        &[
            "is not a folder but a file",
            "give the checkpoint's folder: llama",
        ],
    );
}
