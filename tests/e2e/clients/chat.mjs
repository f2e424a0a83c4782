// The openai package from npm against a running server: node chat.mjs URL MODEL KEY
// Prints one JSON line; the test compares it with what other clients got.
import OpenAI, { BadRequestError, NotFoundError } from "openai";

const [baseURL, model, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const asked = {
  model,
  messages: [{ role: "user", content: "Why is the sky blue?" }],
  max_tokens: 16,
  temperature: 0,
};

const whole = await client.chat.completions.create(asked);

let streamed = "";
let usage = null;
const sources = [];
const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
  if (chunk.collm?.source) sources.push(chunk.collm.source);
}

// The package's own collector of streams checks the order of the chunks.
const collected = await client.chat.completions
  .stream({ ...asked, logprobs: true })
  .finalChatCompletion();

async function refusal(changes) {
  try {
    await client.chat.completions.create({ ...asked, ...changes });
    return "accepted";
  } catch (error) {
    return `${error.constructor.name} ${error.status} ${error.code}`;
  }
}

const tools = [{ type: "function", function: { name: "f", parameters: { type: "object" } } }];
console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed,
    usage,
    sources: sources.length,
    collected: collected.choices[0].message.content,
    logprobs: collected.choices[0].logprobs.content.length,
    models: (await client.models.list()).data.map((one) => one.id),
    tools: await refusal({ tools }),
    missing: await refusal({ model: "gpt-9" }),
    named: [BadRequestError.name, NotFoundError.name],
  }),
);
