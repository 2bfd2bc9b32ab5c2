// Ask llama.cpp about a GGUF file: node llama_cpp.mjs <folder with node_modules> <file>
//
// One JSON request on stdin, one JSON answer as the last line on stdout; a key that is left out is
// not computed:
//   {texts: [str], windows: [[id]], prompt: [id], num_new: n,
//    speed: {num_prompt, num_new, repeats}, threads: n, context: n}
//   -> {tokens: [[id]], nats: [sum over each window but its first token], generated: [id],
//       speed: {prompt_s, decode_s, num_decoded}}, the fastest of all repeats
import {readFileSync} from "node:fs";
import {join} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, file] = process.argv.slice(2);
const entry = join(folder, "node_modules/node-llama-cpp/dist/index.js");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry));
const request = JSON.parse(readFileSync(0, "utf8"));
const threads = request.threads ?? 1;
const greedy = {temperature: 0};

const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, maxThreads: threads, logLevel: LlamaLogLevel.error
});
const model = await llama.loadModel({modelPath: file, gpuLayers: 0});
const context = await model.createContext({
    contextSize: request.context ?? 512, threads: {ideal: threads, min: threads}, flashAttention: false
});
const sequence = context.getSequence();
const answer = {};

if (request.texts)
    answer.tokens = request.texts.map((text) => model.tokenize(text, false));

if (request.windows) {
    answer.nats = [];
    for (const window of request.windows) {
        await sequence.clearHistory();
        const input = window.slice(0, -1).map((id) => [id, {generateNext: {probabilities: true}}]);
        const output = await sequence.controlledEvaluate(input);
        let nats = 0;
        output.forEach((given, index) => {
            nats -= Math.log(given.next.probabilities.get(window[index + 1]));
        });
        answer.nats.push(nats);
    }
}

async function generate(ids, numNew) {
    await sequence.clearHistory();
    const generated = [];
    const began = performance.now();
    let first = null;
    for await (const id of sequence.evaluate(ids, greedy)) {
        first ??= performance.now();
        generated.push(id);
        if (generated.length === numNew)
            break;
    }
    return {generated, prompt_s: (first - began) / 1000, decode_s: (performance.now() - first) / 1000};
}

if (request.prompt)
    answer.generated = (await generate(request.prompt, request.num_new)).generated;

if (request.speed) {
    const {num_prompt: numPrompt, num_new: numNew, repeats} = request.speed;
    const ids = Array.from({length: numPrompt}, (_, index) => 10 + index);
    await generate(ids, 2);
    const runs = [];
    for (let run = 0; run < repeats; run++)
        runs.push(await generate(ids, numNew));
    answer.speed = {
        prompt_s: Math.min(...runs.map((run) => run.prompt_s)),
        decode_s: Math.min(...runs.map((run) => run.decode_s)),
        num_decoded: runs[0].generated.length - 1
    };
}

console.log(JSON.stringify(answer));
process.exit(0);
