//! Messages and a question behind them, as one write.
//!
//! Invariant: the question is the last frame of a burst.

use super::frame::{self, opcode};
use super::stamp::Stamp;
use super::template::{Template, TemplateValues};

/// What each connection says.
#[derive(Clone, Debug)]
pub struct BurstTemplate {
    /// One message.
    pub message: Template,
    /// Characters of its payload.
    pub payload_bytes: usize,
    /// How many before the question.
    pub messages: u32,
    /// The question.
    pub question: String,
    /// Text in the frame that answers it.
    pub answer: String,
}

impl BurstTemplate {
    /// A whole burst as it goes on the wire. `random` gives the masks.
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
