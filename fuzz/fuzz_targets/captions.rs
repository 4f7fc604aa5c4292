//! Any text as a caption: our WordPiece against the `tokenizers` library; any bytes as a text or JSON member.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use qf_pipeline::captions::{
    captions_from_json, captions_from_json_field, captions_from_text, CaptionLines,
};
use qf_pipeline::text::{CaptionProcessor, CaptionTokenizer};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer};

const TEXT_LEN: usize = 32;

/// Ours, and BERT's as the library's documentation builds it.
fn both() -> &'static (CaptionTokenizer, Tokenizer) {
    static BOTH: OnceLock<(CaptionTokenizer, Tokenizer)> = OnceLock::new();
    BOTH.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/bert/vocab.txt");
        let ours = CaptionTokenizer::from_vocab_file(&path).expect("BERT's vocabulary");
        let model = WordPiece::from_file(&path.to_string_lossy())
            .unk_token("[UNK]".into())
            .build()
            .expect("BERT's vocabulary");
        let mut library = Tokenizer::new(model);
        library
            .with_normalizer(Some(BertNormalizer::default()))
            .with_pre_tokenizer(Some(BertPreTokenizer));
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"];
        library.add_special_tokens(&special.map(|name| AddedToken::from(name, true)));
        (ours, library)
    })
}

fuzz_target!(|data: &[u8]| {
    for lines in [CaptionLines::Each, CaptionLines::One] {
        if let Ok(captions) = captions_from_text(data, lines) {
            assert!(captions.iter().all(|caption| !caption.trim().is_empty()));
        }
    }
    let _ = captions_from_json(data);
    let _ = captions_from_json_field(data, "caption");
    let Ok(caption) = std::str::from_utf8(data) else {
        return;
    };
    let (ours, library) = both();
    let processor = CaptionProcessor::default();
    let processed = processor.process(caption);
    assert_eq!(processor.is_empty(caption), processed.is_empty());
    for text in [caption, &processed] {
        let (mut ids, mut mask) = ([0; TEXT_LEN], [0; TEXT_LEN]);
        ours.encode(text, &mut ids, &mut mask).expect("encodes");
        let expected = library.encode(text, false).expect("encodes");
        let kept = expected.get_ids().len().min(TEXT_LEN - 2);
        let mut row = vec![ours.cls_id()];
        row.extend(expected.get_ids()[..kept].iter().map(|&id| i64::from(id)));
        row.push(ours.sep_id());
        let used = row.len();
        row.resize(TEXT_LEN, ours.pad_id());
        assert_eq!(ids[..], row[..], "{text:?}");
        assert_eq!(mask.iter().sum::<i64>() as usize, used);
        let _ = ours.decode(&ids);
    }
});
