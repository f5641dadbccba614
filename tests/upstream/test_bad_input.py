"""Bad input in DomainBed's own train script: one sentence where the launcher and the report look for it."""

from .test_train import train


def test_the_sentence_is_the_last_line_of_err_txt(attached, tmp_path):
    """The algorithm is built after train has put its Tee at sys.stderr."""
    ended = train(attached, tmp_path / "job", "DomainFusion", check=False, hparams={"ldm": str(tmp_path / "gone")})
    lines = (tmp_path / "job" / "err.txt").read_text().splitlines()
    assert ended.returncode == 1
    assert lines[-1].startswith(f"The latent diffusion model {tmp_path}/gone does not exist: give")
    assert "Traceback" not in ended.stdout + ended.stderr + "".join(lines)
