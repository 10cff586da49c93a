//! The frequencies of the rotary position embedding.

use super::config::{LlamaConfig, RopeScaling};

/// Inverse frequencies `[head_dim / 2]`, scaled as `rope_type: "llama3"` asks.
pub fn inverse_frequencies(config: &LlamaConfig) -> Vec<f32> {
    let half = config.head_dim / 2;
    (0..half)
        .map(|i| {
            // transformers computes these in f32.
            let exponent = (2 * i) as f32 / config.head_dim as f32;
            let base = 1.0 / (config.rope_theta as f32).powf(exponent);
            match &config.rope_scaling {
                None => base,
                Some(scaling) => scale_frequency(base as f64, scaling) as f32,
            }
        })
        .collect()
}

fn scale_frequency(frequency: f64, scaling: &RopeScaling) -> f64 {
    let original = scaling.original_max_position_embeddings as f64;
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength < original / scaling.high_freq_factor {
        return frequency;
    }
    if wavelength > original / scaling.low_freq_factor {
        return frequency / scaling.factor;
    }
    let smooth = (original / wavelength - scaling.low_freq_factor)
        / (scaling.high_freq_factor - scaling.low_freq_factor);
    (1.0 - smooth) * frequency / scaling.factor + smooth * frequency
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_short_and_stretches_long_waves() {
        let scaling = RopeScaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert_eq!(scale_frequency(1.0, &scaling), 1.0);
        assert_eq!(scale_frequency(1e-6, &scaling), 1e-6 / 8.0);
        // Half way in 1/wavelength: wavelength 8192 / 2.5 gives smooth = 0.5.
        let f = 2.0 * std::f64::consts::PI * 2.5 / 8192.0;
        let expected = 0.5 * f / 8.0 + 0.5 * f;
        assert!((scale_frequency(f, &scaling) - expected).abs() < 1e-12);
    }
}
