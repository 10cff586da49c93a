//! Well-known cards: what they hold and how fast they are, as their makers say.

use serde::Serialize;

/// A card. Rates are nominal, but for `link_gbs`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Card {
    /// Its name and the memory that it is sold with, like `H100 80GB`.
    pub name: &'static str,
    /// Memory as drivers report it, in MiB.
    pub mib: u64,
    /// Dense matrix products in bf16, in TFLOP/s.
    pub tflops: f64,
    /// Reading its own memory, in GB/s.
    pub memory_gbs: f64,
    /// To the other cards of its node, in GB/s each way: 0.8 of NVLink's or PCIe's rate.
    pub link_gbs: f64,
}

const fn card(name: &'static str, mib: u64, tflops: f64, memory: f64, link: f64) -> Card {
    Card {
        name,
        mib,
        tflops,
        memory_gbs: memory,
        link_gbs: link,
    }
}

/// Those that are known, the one assumed where none is named first.
const CARDS: [Card; 12] = [
    card("H100 80GB", 81_559, 989.0, 3350.0, 360.0),
    card("H200 141GB", 143_771, 989.0, 4800.0, 360.0),
    card("B200 180GB", 183_359, 2250.0, 8000.0, 720.0),
    card("A100 40GB", 40_960, 312.0, 1555.0, 240.0),
    card("A100 80GB", 81_920, 312.0, 2039.0, 240.0),
    card("L40S 48GB", 46_068, 362.0, 864.0, 25.0),
    card("L4 24GB", 23_034, 121.0, 300.0, 25.0),
    card("A10 24GB", 23_028, 125.0, 600.0, 25.0),
    card("RTX A6000 48GB", 49_140, 155.0, 768.0, 25.0),
    card("RTX 3090 24GB", 24_576, 71.0, 936.0, 25.0),
    card("RTX 4090 24GB", 24_564, 165.0, 1008.0, 25.0),
    card("RTX 5090 32GB", 32_607, 209.0, 1792.0, 50.0),
];

impl Card {
    /// The one that is assumed for a GPU where none is named.
    pub fn assumed() -> Self {
        CARDS[0]
    }

    /// A process's part of this machine's cores and memory, in f32; an estimate from the rates of
    /// docs/results.md.
    pub(super) fn cpu(cores: f64) -> Self {
        card("CPU", 0, 0.2 * cores, 10.0 * cores, 2.8)
    }

    /// The card of a name as people or drivers write it: `h100`, `A100-SXM4-40GB`,
    /// `NVIDIA GeForce RTX 4090`. The error says which there are.
    pub fn find(name: &str) -> Result<Self, String> {
        let wanted = key(name);
        let model = |card: &Card| key(card.name.rsplit_once(' ').map_or("", |(model, _)| model));
        let is = |card: &&Card| wanted == key(card.name) || wanted == model(card);
        let ends = |card: &&Card| wanted == model(card).trim_start_matches("rtx");
        let mut found: Vec<Card> = CARDS.iter().filter(is).copied().collect();
        if found.is_empty() {
            found = CARDS.iter().filter(ends).copied().collect();
        }
        let names = |cards: &[Card]| {
            let names: Vec<&str> = cards.iter().map(|card| card.name).collect();
            names.join(", ")
        };
        match found[..] {
            [card] => Ok(card),
            [] => Err(format!(
                "unknown card; known are {}. For another give --memory-gib",
                names(&CARDS)
            )),
            _ => Err(format!("which one: {}?", names(&found))),
        }
    }
}

/// A name without what does not tell cards apart.
fn key(name: &str) -> String {
    const SAID_ANYWAY: [&str; 11] = [
        "nvidia", "geforce", "sxm4", "sxm5", "sxm", "pcie", "hbm3e", "hbm3", "hbm2e", "hbm2", "gb",
    ];
    let letters = name.chars().filter(char::is_ascii_alphanumeric);
    let name: String = letters.map(|c| c.to_ascii_lowercase()).collect();
    SAID_ANYWAY
        .iter()
        .fold(name, |name, word| name.replace(word, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_found_by_the_names_of_people_and_drivers() {
        for (name, found) in [
            ("H100 80GB", "H100 80GB"),
            ("h100", "H100 80GB"),
            ("NVIDIA H100 80GB HBM3", "H100 80GB"),
            ("NVIDIA H200", "H200 141GB"),
            ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
            ("a100-80gb", "A100 80GB"),
            ("A100 80GB PCIe", "A100 80GB"),
            ("L4", "L4 24GB"),
            ("NVIDIA L40S", "L40S 48GB"),
            ("NVIDIA GeForce RTX 4090", "RTX 4090 24GB"),
            ("4090", "RTX 4090 24GB"),
        ] {
            assert_eq!(Card::find(name).unwrap().name, found, "{name}");
        }
        let two = Card::find("A100").unwrap_err();
        assert_eq!(two, "which one: A100 40GB, A100 80GB?");
        for other in ["", "TPU v5", "H10", "100"] {
            let refused = Card::find(other).unwrap_err();
            assert!(refused.contains("known are H100 80GB, "), "{other}");
        }
    }
}
