import logging

from client.logs import one_line, site_log

HOSTILE = "x\n2026-01-01 00:00:00,000 INFO all is well\x1b[2J\u2028\u202e\r"


def test_an_entry_is_a_line_whatever_it_quotes(tmp_path):
    log = site_log("st-olav", tmp_path)
    log.error("train %s: %s", HOSTILE, HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        log.error("%s", HOSTILE, exc_info=error)
    logging.Logger.info(log, "done")

    text = (tmp_path / "site.log").read_text()
    lines = text.split("\n")[:-1]
    entries = [line for line in lines if not line.startswith("    ")]
    assert [entry.split()[2] for entry in entries] == ["ERROR", "ERROR", "INFO"]
    assert not [letter for letter in text if not letter.isprintable() and letter != "\n"]
    assert "Traceback" in text


def test_what_is_quoted_has_an_end():
    assert len(one_line("y" * 10**7)) < 5000
    assert one_line("y" * 10**7).endswith("(10000000 characters)")
