"""The Python API in one screen: open a model, complete prompts plainly and with Elastic-SD, compare."""

from elmoe import Engine, EngineOptions, Generation, Mode, Sampling, Speculation

prompt = [{"role": "user", "content": "Write a short story about a dog who finds a key."}]
engine = Engine.open("tiny", EngineOptions(pool_fraction=0.5))

engine.speculation = Speculation(mode=Mode.AR)
(plain,) = engine.generate([prompt], Generation(max_tokens=64))

engine.speculation = Speculation(mode=Mode.SD, width=2, depth=4, verify=8)
(elastic,) = engine.generate([prompt], Generation(max_tokens=64))

print(elastic.text)
print()
print("same tokens:", plain.token_ids == elastic.token_ids)
print(f"acceptance rate: {elastic.acceptance.acceptance_rate:.2f}")
print(f"tokens per verify step: {1 + elastic.acceptance.mean_accepted_length:.2f}")

print()
print("sampled, streamed:")
for piece in engine.stream(prompt, Generation(max_tokens=64, sampling=Sampling(temperature=0.8, seed=7))):
    print(piece, end="", flush=True)
print()
