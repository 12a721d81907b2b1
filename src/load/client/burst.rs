//! Bursts of `campanile load ingest`: messages, and a question at the end that the server answers.
//!
//! One connection sends a burst in one write. The answer shows that the server has taken the
//! messages in, so none is counted that is still in a socket buffer.
//!
//! Invariant: the question is the last frame of a burst.

use super::frame::{self, opcode};
use super::stamp::Stamp;
use super::template::{Template, TemplateValues};

/// The burst of every connection; only the room name differs.
#[derive(Clone, Debug)]
pub struct BurstTemplate {
    /// One message of the burst; `{room}` and `{n}` are filled in.
    pub message: Template,
    /// Length of its payload, in bytes.
    pub payload_bytes: usize,
    /// Messages before the question, at least 1.
    pub messages: u32,
    /// The payload of the last frame.
    pub question: String,
    /// Text in the frame that answers it; not empty.
    pub answer: String,
}

impl BurstTemplate {
    /// The masked frames of one burst. `random` gives the mask of each.
    pub fn encode(&self, values: TemplateValues<'_>, mut random: impl FnMut() -> u32) -> Box<[u8]> {
        let stamp = Stamp { run_id: 0, room: values.room, seq: 0, intended_ns: 0 };
        let values = TemplateValues { message: Some((stamp, self.payload_bytes)), ..values };
        let (mut text, mut burst) = (Vec::new(), Vec::new());
        for _ in 0..self.messages {
            text.clear();
            self.message.fill(&values, &mut text);
            frame::put_frame(&mut burst, opcode::TEXT, &text, random());
        }
        frame::put_frame(&mut burst, opcode::TEXT, self.question.as_bytes(), random());
        burst.into_boxed_slice()
    }
}
