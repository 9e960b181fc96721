"""Query a running `rinalmo web` from Python: python examples/ask_the_page.py http://127.0.0.1:7860"""

import sys

from gradio_client import Client

page = Client(sys.argv[1], verbose=False)

answer = page.predict("GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU", api_name="/fill_mask")
print(*(f"{candidate['token_str']} {candidate['score']:.3f}" for candidate in answer["masks"][0][:4]))

trna = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"
answer = page.predict(trna, api_name="/fold")
print(answer["dot_bracket"])

answer = page.predict(f">tRNA-Phe\n{trna}\n>miR-21\nUAGCUUAUCAGACUGAUGUUGA", api_name="/embed")
print(answer["ids"], len(answer["embeddings"]), "×", len(answer["embeddings"][0]))

answer = page.predict("GGGAAACCC", api_name="/variants")
print({letter: round(score, 2) for letter, score in zip(answer["letters"], answer["scores"][0], strict=True)})

for text in ("MKTEFLPQ", "", "<script>alert(1)</script>", "ACGU" * 25_000):
    try:
        page.predict(text, api_name="/fold")
    except Exception as error:
        print(error)
