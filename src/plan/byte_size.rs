//! Sizes as people read them.

use std::fmt;

/// Bytes for people.
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut size = self.0 as f64;
        for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
            if size < 1024.0 || unit == "TiB" {
                let digits = usize::from(size.fract() >= 0.05);
                return write!(f, "{size:.digits$} {unit}");
            }
            size /= 1024.0;
        }
        Ok(())
    }
}
