//! Finished files and checkpoints that were cut, swapped or changed were taken as they were.
#![cfg(unix)]

use std::fs;

use serde_json::json;

use crate::cli::Place;
use crate::cli::train::TRAIN;

fn flip(place: &Place, name: &str) {
    let mut bytes = place.bytes(name);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    place.write(name, bytes);
}

#[test]
fn of_the_files_of_a_run() {
    let place = crate::cli::run::place();
    let run = "run --config run.toml --set output_dir=out";
    place.ok(run);
    let report = place.read("out/report.json");
    let responses = place.read("out/iteration-1/responses.jsonl");
    let cut = responses.split_inclusive('\n').take(2).collect::<String>();
    let help = "give --overwrite to make it anew";
    place.write("out/iteration-1/responses.jsonl", &cut);
    place.refused(run, &["out/iteration-1/responses.jsonl has ", help]);
    place.write("out/iteration-1/responses.jsonl", &responses);

    let model = |i| format!("out/iteration-{i}/model/model.safetensors");
    let (one, two) = (place.bytes(&model(1)), place.bytes(&model(2)));
    place.write(&model(1), &two);
    place.write(&model(2), &one);
    place.refused(
        run,
        &["iteration-1/model/model.safetensors was changed", help],
    );
    place.write(&model(1), &one);
    place.write(&model(2), &two);

    for i in [1, 2] {
        fs::rename(
            place.path(&format!("out/iteration-{i}/model")),
            place.path(&format!("m{i}")),
        )
        .unwrap();
    }
    fs::rename(place.path("m2"), place.path("out/iteration-1/model")).unwrap();
    fs::rename(place.path("m1"), place.path("out/iteration-2/model")).unwrap();
    place.refused(run, &["out/iteration-1/model is of another training", help]);
    fs::rename(place.path("out/iteration-1/model"), place.path("m2")).unwrap();
    fs::rename(
        place.path("out/iteration-2/model"),
        place.path("out/iteration-1/model"),
    )
    .unwrap();
    fs::rename(place.path("m2"), place.path("out/iteration-2/model")).unwrap();

    place.edit("out/init/config.json", |config| {
        config["rope_theta"] = json!(77.0)
    });
    place.refused(run, &["out/init/config.json", help]);
    // The flag makes just that anew; all the rest is found whole.
    place.ok(&format!("{run} --overwrite"));
    assert_eq!(place.read("out/report.json"), report);
    assert_eq!(place.bytes(&model(2)), two);
}

/// A training of four steps, ended after some of them, with a checkpoint behind each.
fn begun(place: &Place) -> String {
    let args = format!("{TRAIN} --set train.checkpoint_every=1 --set train.keep_checkpoints=3");
    place.ok(&format!("{args} --set train.stop_at_epoch=1"));
    fs::remove_dir_all(place.path("out/model")).unwrap();
    args
}

#[test]
fn of_checkpoints() {
    let whole = crate::cli::train::place();
    whole.ok(TRAIN);
    let expected = whole.bytes("out/model/model.safetensors");
    let newest = "out/checkpoints/step-00000004";
    type Damage<'a> = (&'a str, &'a dyn Fn(&Place));
    let damages: [Damage; 4] = [
        ("model.safetensors was changed", &|place| {
            flip(place, &format!("{newest}/model.safetensors"))
        }),
        ("config.json", &|place| {
            place.edit(&format!("{newest}/config.json"), |config| {
                config["x"] = json!(1)
            });
        }),
        ("optimizer-0-of-1.safetensors has 10 bytes", &|place| {
            let name = format!("{newest}/trainer/optimizer-0-of-1.safetensors");
            let bytes = place.bytes(&name);
            place.write(&name, &bytes[..10]);
        }),
        ("state.json does not hold what was written", &|place| {
            place.edit(&format!("{newest}/trainer/state.json"), |state| {
                state["step"] = json!(4_294_967_296u64);
            });
        }),
    ];
    for (part, damage) in damages {
        let place = crate::cli::train::place();
        let args = begun(&place);
        damage(&place);
        let ran = place.sppo(&args);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let warned = ran.stderr.contains(part)
            && ran
                .stderr
                .contains("going on from the checkpoint before it");
        assert!(warned, "{part}: {}", ran.stderr);
        assert_eq!(
            place.bytes("out/model/model.safetensors"),
            expected,
            "{part}"
        );
    }
}

#[test]
fn of_the_reference_values() {
    let place = crate::cli::train::place();
    let args = begun(&place);
    let mut cache = fs::read_dir(place.path("out"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let cache = cache
        .find(|name| name.starts_with("reference-") && name.ends_with(".jsonl"))
        .unwrap();
    let name = format!("out/{cache}");
    let text = place.read(&name);
    let doubled: String = text
        .split_inclusive('\n')
        .enumerate()
        .map(|(i, l)| if i == 1 { l.repeat(2) } else { l.into() })
        .collect();
    // As a finished file, as one that would be continued, and with the flag that makes it anew.
    place.write(&name, &doubled);
    place.refused(&args, &[&cache, "when it was finished"]);
    place.cut(&name, &doubled);
    place.refused(&args, &[&cache, "holds row 2 (pair-1) as its row 3"]);
    place.ok(&format!("{args} --overwrite"));
    assert_eq!(place.read(&name), text);
}

/// A damaged checkpoint is not counted among those that are kept, and a copy is no checkpoint.
#[test]
fn the_newest_checkpoint_is_kept() {
    let place = crate::cli::train::place();
    let args = begun(&place);
    flip(&place, "out/checkpoints/step-00000004/model.safetensors");
    let copy = place.path("out/checkpoints/step-best");
    fs::create_dir(&copy).unwrap();
    fs::create_dir(copy.join("trainer")).unwrap();
    fs::copy(
        place.path("out/checkpoints/step-00000002/trainer/state.json"),
        copy.join("trainer/state.json"),
    )
    .unwrap();
    place.ok(&format!("{args} --set train.keep_checkpoints=1"));
    let whole = crate::cli::train::place();
    whole.ok(TRAIN);
    let name = "out/model/model.safetensors";
    assert_eq!(place.bytes(name), whole.bytes(name));
    assert!(copy.join("trainer/state.json").exists());
}
