"""What generation costs in llama.cpp on this CPU: llama_cpp_generate.py MODEL.gguf [TOKENS [THREADS]].

Greedy, after one question, as `burn-lora generate MODEL.gguf QUESTION --max-new-tokens TOKENS` does; the rate is that after the
first token. Needs llama-cpp-python."""
import sys
import time

sys.path.pop(0)  # Where another script has the package's name.
from llama_cpp import Llama

model, tokens, threads = sys.argv[1], int((sys.argv[2:] or [128])[0]), int((sys.argv[3:] or [2])[0])
llama = Llama(model, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
question = [{"role": "user", "content": "Tell me a long story about a cat."}]
for _ in range(3):
    first, count = None, 0
    for chunk in llama.create_chat_completion(question, max_tokens=tokens, temperature=0, stream=True):
        if chunk["choices"][0]["delta"].get("content"):
            count += 1
            first = first or time.perf_counter()
    print(f"{count} tokens, {(count - 1) / (time.perf_counter() - first):.1f} per second")
