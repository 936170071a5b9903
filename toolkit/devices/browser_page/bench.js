// One bundle in a page: loaded, run and timed here, told what to do by toolkit/devices/browser_steps.py.
//
// Every function of `bench` takes one JSON value and gives one. Times are in milliseconds, of performance.now.

const WARM_UP_WINDOW = 8; // runs; as in toolkit/bench/loops.py, and so are the two below
const WARM_UP_STEP = 0.02;
const WARM_UP_STABLE = 2;
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, int64: BigInt64Array, uint64: BigUint64Array,
  int32: Int32Array, uint32: Uint32Array, int16: Int16Array, uint16: Uint16Array, int8: Int8Array, uint8: Uint8Array,
  bool: Uint8Array,
};

const base = new URL(".", import.meta.url);
const entered = performance.now(); // since the page was asked for
let settings; // of `prepare`
let examples; // their inputs by name: {dtype, dims, data}
let session;

function bytesOf(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

// Lets the page do what else it has to do: a loop that only awaits what is ready never does.
function breathe() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { port1.close(); resolve(); };
    port2.postMessage(null);
  });
}

async function onnxruntime(verbose) {
  const build = settings.backend === "webgpu" ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs";
  const folder = new URL("runtime/onnxruntime-web/dist/", base).href;
  const ort = await import(folder + build);
  ort.env.logLevel = verbose ? "verbose" : "error"; // verbose says where the operators run
  ort.env.wasm.wasmPaths = folder;
  ort.env.wasm.numThreads = settings.threads;
  const made = await ort.InferenceSession.create(new URL(settings.model, base).href, {
    executionProviders: [settings.backend],
    logSeverityLevel: verbose ? 0 : 3,
    externalData: settings.data.map((path) => ({ path: path.split("/").pop(), data: new URL(path, base).href })),
  });
  if (ort.env.wasm.numThreads !== settings.threads) throw new Error(`it runs on ${ort.env.wasm.numThreads} thread(s)`);
  return async (inputs) => {
    const feeds = {};
    for (const [name, { dtype, data, dims }] of Object.entries(inputs)) feeds[name] = new ort.Tensor(dtype, data, dims);
    const found = await made.run(feeds);
    const outputs = {};
    for (const name of made.outputNames) {
      const tensor = found[name];
      outputs[name] = { dtype: tensor.type, dims: tensor.dims, data: await tensor.getData() };
      tensor.dispose();
    }
    return outputs;
  };
}

async function litert() {
  const runtime = new URL("runtime/@litertjs/core/", base).href;
  const L = await import(runtime + "dist/index.js");
  // On a GPU what its delegate does not take runs in wasm, which waits for the GPU by JSPI.
  await L.loadLiteRt(runtime + "wasm/", { threads: settings.threads > 1, jspi: settings.backend === "webgpu" });
  const made = await L.loadAndCompile(new URL(settings.model, base).href, {
    accelerator: settings.backend,
    cpuOptions: { numThreads: settings.threads },
    gpuOptions: { precision: "fp32" },
  });
  if (made.options.accelerator !== settings.backend) throw new Error(`it runs on ${made.options.accelerator} instead`);
  return async (inputs, signature) => {
    const feeds = {};
    for (const [name, { data, dims }] of Object.entries(inputs)) feeds[name] = new L.Tensor(data, dims);
    const found = await made.run(signature, feeds);
    const outputs = {};
    for (const [name, tensor] of Object.entries(found)) {
      const data = await tensor.data();
      outputs[name] = { dtype: tensor.type.dtype, dims: [...tensor.type.layout.dimensions], data };
      tensor.delete();
    }
    for (const tensor of Object.values(feeds)) tensor.delete();
    return outputs;
  };
}

// One inference, from inputs in the page's memory to outputs in it.
function query(index) {
  return session(examples[index].inputs, examples[index].signature);
}

const bench = {
  // The inputs of all examples; before anything is loaded, for they are no part of that.
  async prepare(given) {
    settings = given;
    const content = await (await fetch(new URL("inputs.bin", base))).arrayBuffer();
    examples = given.examples.map(({ signature, inputs }) => ({
      signature,
      inputs: Object.fromEntries(inputs.map(({ name, dtype, dims, offset, count }) => [
        name, { dtype, dims, data: new ARRAYS[dtype](content, offset, count) },
      ])),
    }));
    return { isolated: crossOriginIsolated, page_ms: entered };
  },

  async load(given) {
    const began = performance.now();
    session = await (settings.runtime === "onnxruntime-web" ? onnxruntime(given?.verbose) : litert());
    return performance.now() - began;
  },

  async first() {
    const began = performance.now();
    await query(0);
    return performance.now() - began;
  },

  async all() {
    for (let index = 0; index < examples.length; index++) await query(index);
    return examples.length;
  },

  async answers() {
    const found = [];
    for (let index = 0; index < examples.length; index++) {
      const outputs = await query(index);
      found.push(Object.entries(outputs).map(([name, { dtype, dims, data }]) => (
        { name, dtype, dims: [...dims], data: bytesOf(data) }
      )));
    }
    return found;
  },

  // Until times are stable; the same as `warm_up` of toolkit/bench/loops.py.
  async warmUp(mostSeconds) {
    await bench.all();
    const began = performance.now();
    const window = Math.min(examples.length, WARM_UP_WINDOW);
    let made = examples.length, fastest = Infinity, stable = 0;
    while (stable < WARM_UP_STABLE) {
      if (performance.now() - began > mostSeconds * 1e3) return { made, stable: false, fastest_ms: fastest };
      const times = [];
      for (let turn = 0; turn < Math.max(1, Math.floor(WARM_UP_WINDOW / window)); turn++) {
        for (let index = 0; index < window; index++) {
          const started = performance.now();
          await query(index);
          times.push(performance.now() - started);
        }
      }
      made += times.length;
      const middle = median(times);
      stable = middle > (1 - WARM_UP_STEP) * fastest ? stable + 1 : 0;
      fastest = Math.min(fastest, middle);
      await breathe();
    }
    return { made, stable: true, fastest_ms: fastest };
  },

  // Milliseconds of queries one after the other, `together` of the same example taken at a time and divided.
  async times({ seconds, least, orders, together }) {
    const samples = [];
    const began = performance.now();
    for (let pass = 0; ; pass++) {
      for (const index of orders[pass % orders.length]) {
        const started = performance.now();
        for (let turn = 0; turn < together; turn++) await query(index);
        samples.push((performance.now() - started) / together);
        if (samples.length >= least && performance.now() - began >= seconds * 1e3) {
          return bytesOf(Float64Array.from(samples));
        }
      }
      await breathe();
    }
  },

  // The step of the clock: the least difference between two readings that differ.
  async clock() {
    let least = Infinity;
    for (let turn = 0; turn < 200; turn++) {
      const before = performance.now();
      let after = before;
      while (after === before) after = performance.now();
      least = Math.min(least, after - before);
    }
    return least;
  },

  // Work by which this page's process can be told from others.
  async spin(milliseconds) {
    const began = performance.now();
    while (performance.now() - began < milliseconds);
    return null;
  },

  async adapter() {
    const found = navigator.gpu ? await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }) : null;
    if (!found) return null;
    const { vendor, architecture, device, description, isFallbackAdapter } = found.info;
    return { vendor, architecture, device, description, fallback: Boolean(isFallbackAdapter) };
  },
};

globalThis.call = async (name, given) => {
  try {
    return { value: await bench[name](given) };
  } catch (error) {
    return { error: String(error?.message ?? error) };
  }
};
