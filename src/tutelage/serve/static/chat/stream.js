// Server-sent events over fetch, and one answer of an OpenAI-compatible server as pieces of text and tokens.

export class ServerError extends Error {
  // status 0: no answer came at all. retryAfter: seconds, where the server named them.
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.name = "ServerError";
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

// The data of each event in `response`, as text. Events end at an empty line; lines may end in \n, \r\n or \r.
export async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      buffer += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = buffer.split(/\r\n|\n|\r(?!$)/);
      buffer = lines.pop();
      if (done && buffer) lines.push(buffer, "");
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (done) {
        if (data.length) yield data.join("\n");
        return;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // hangs up: the server frees the slot
  }
}

async function refusal(response) {
  const words = await response.text().catch(() => "");
  let message = words.slice(0, 300);
  try {
    const body = JSON.parse(words);
    message = body.error?.message ?? body.detail ?? message;
  } catch {
    // not JSON: the text itself
  }
  const wait = Number.parseFloat(response.headers.get("Retry-After"));
  const after = Number.isFinite(wait) ? wait : null;
  return new ServerError(String(message || response.statusText), response.status, after);
}

// POST `body` to `path` and yield each event's JSON. A break-off and an {"error"} event become ServerErrors.
export async function* post(path, body, { signal, key } = {}) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new ServerError(problem.message);
  }
  if (!response.ok) throw await refusal(response);
  try {
    for await (const data of events(response)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message ?? String(event.error), event.error.code ?? 500);
      yield event;
    }
  } catch (problem) {
    if (problem instanceof TypeError) throw new ServerError(problem.message); // the connection broke
    throw problem;
  }
}

function chatTokens(choice) {
  return (choice.logprobs?.content ?? []).map((one) => ({
    text: one.token,
    bytes: one.bytes ?? null,
    logprob: one.logprob,
    top: (one.top_logprobs ?? []).map(({ token, bytes = null, logprob }) => ({ text: token, bytes, logprob })),
  }));
}

function textTokens(choice) {
  const found = choice.logprobs;
  return (found?.tokens ?? []).map((text, i) => ({
    text,
    bytes: null,
    logprob: found.token_logprobs?.[i] ?? null,
    top: Object.entries(found.top_logprobs?.[i] ?? {})
      .map(([other, logprob]) => ({ text: other, bytes: null, logprob }))
      .sort((a, b) => b.logprob - a.logprob),
  }));
}

// The request's path and body: messages where the model talks, else the text to continue.
export function request({ model, talks, messages, settings, alternatives }) {
  const body = { model, stream: true, stream_options: { include_usage: true }, ...sampling(settings) };
  if (talks) {
    if (alternatives) Object.assign(body, { logprobs: true, top_logprobs: alternatives });
    return ["/v1/chat/completions", { ...body, messages }];
  }
  if (alternatives) body.logprobs = alternatives;
  return ["/v1/completions", { ...body, prompt: messages.at(-1).content }];
}

// What of the settings is sent: a setting that is off is left out, since not every server knows top_k.
export function sampling(settings) {
  const sent = { temperature: settings.temperature, top_p: settings.top_p, max_tokens: settings.max_tokens };
  if (settings.top_k > 0) sent.top_k = settings.top_k;
  if (settings.seed !== null) sent.seed = settings.seed;
  if (settings.stop.length) sent.stop = settings.stop;
  return sent;
}

const WITHOUT_LOGPROBS = new Set(); // models whose server refuses them

// Yield {text, tokens, finish, usage} of one answer. Closing the generator or aborting `signal` hangs up.
export async function* answer(asked, { signal, key } = {}) {
  const alternatives = WITHOUT_LOGPROBS.has(asked.model) ? 0 : 5;
  try {
    yield* once({ ...asked, alternatives }, { signal, key });
  } catch (problem) {
    const refused = [400, 422].includes(problem.status) && /logprob/i.test(problem.message);
    if (!alternatives || !refused) throw problem;
    WITHOUT_LOGPROBS.add(asked.model);
    yield* once({ ...asked, alternatives: 0 }, { signal, key });
  }
}

async function* once(asked, options) {
  const [path, body] = request(asked);
  let finish = null;
  for await (const event of post(path, body, options)) {
    const choice = event.choices?.[0];
    finish = choice?.finish_reason ?? finish;
    yield {
      text: (asked.talks ? choice?.delta?.content : choice?.text) ?? "",
      tokens: choice ? (asked.talks ? chatTokens(choice) : textTokens(choice)) : [],
      finish: choice?.finish_reason ?? null,
      usage: event.usage ?? null,
    };
  }
  if (finish === null) throw new ServerError("the stream ended before the answer did");
}
