//! Opt-outs by `X-Robots-Tag`, as img2dataset reads them: directives with commas between, perhaps behind
//! the name of the program that they address and a colon.

/// Directives that say that an image is not for training or not to be indexed: img2dataset's defaults.
const OPT_OUTS: [&str; 4] = ["noai", "noimageai", "noindex", "noimageindex"];

/// The header by which a server opts out, if it does. `token` is the name that directives may address.
pub(super) fn opts_out<'a>(
    headers: impl Iterator<Item = &'a str>,
    token: Option<&str>,
) -> Option<&'a str> {
    headers.into_iter().find(|header| {
        let (addressed, directives) = match header.split_once(':') {
            Some((name, directives)) => (Some(name.trim()), directives),
            None => (None, *header),
        };
        let is_for_us = match (addressed, token) {
            (None, _) => true,
            (Some(name), Some(token)) => name.eq_ignore_ascii_case(token),
            (Some(_), None) => false,
        };
        let mut directives = directives.split(',').map(str::trim);
        is_for_us
            && directives.any(|found| OPT_OUTS.iter().any(|out| found.eq_ignore_ascii_case(out)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What img2dataset's `is_disallowed` says of the same headers.
    #[test]
    fn as_img2dataset_reads_them() {
        for (headers, token, expected) in [
            (&[][..], None, false),
            (&["all"][..], None, false),
            (&["noai"], None, true),
            (&["NoAI, nofollow"], None, true),
            (&["nofollow", "noimageai"], None, true),
            (&["noindex"], None, true),
            (&["otherbot: noai"], None, false),
            (&["otherbot: noai"], Some("mybot"), false),
            (&["MyBot: noai"], Some("mybot"), true),
            (&["mybot: nofollow", "noimageindex"], Some("mybot"), true),
            (&["noaim"], None, false),
        ] {
            let found = opts_out(headers.iter().copied(), token);
            assert_eq!(found.is_some(), expected, "{headers:?} {token:?}");
        }
    }
}
