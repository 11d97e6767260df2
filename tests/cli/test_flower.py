from cli.flower import connections


def test_connections_come_from_flower_s_configuration(tmp_path):
    assert connections(tmp_path) == []
    (tmp_path / "config.toml").write_text(
        '[superlink]\ndefault = "prod"\n[superlink.prod]\naddress = "a:1"\n[superlink.test]\naddress = "b:1"\n'
    )
    assert connections(tmp_path) == ["prod", "test"]
