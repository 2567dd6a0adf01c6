// The openai package of Node.
import assert from "node:assert/strict";
import OpenAI from "openai";

const CASE = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: `${CASE.url}/v1`, apiKey: "x", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"], additionalProperties: false },
  },
};

const parts = {
  async chat() {
    const answer = await client.chat.completions.create({ model: CASE.chat, messages, temperature: 0 });
    assert.match(answer.choices[0].message.content, /Paris/);
  },
  async stream() {
    let said = "";
    let usage;
    const options = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await client.chat.completions.create({ model: CASE.chat, messages, temperature: 0, ...options })) {
      said += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.match(said, /Paris/);
    assert.ok(usage.completion_tokens > 0);
  },
  async tool() {
    const stream = client.chat.completions.stream({
      model: CASE.tools, messages, tools: [weather], tool_choice: "required", parallel_tool_calls: false, max_tokens: 1000, temperature: 0,
    });
    const answer = await stream.finalChatCompletion();
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(call.function.name, "weather");
    assert.ok(["Paris", "Rome"].includes(JSON.parse(call.function.arguments).city));
  },
  async responses() {
    const answer = await client.responses.create({ model: CASE.chat, input: messages[0].content, temperature: 0 });
    assert.match(answer.output_text, /Paris/);
  },
  async embeddings() {
    const input = ["Hello", "Bananas are yellow."];
    const based = await client.embeddings.create({ model: CASE.embedding, input });
    const plain = await client.embeddings.create({ model: CASE.embedding, input, encoding_format: "float" });
    assert.equal(based.data[0].embedding.length, 384);
    based.data.forEach((row, number) =>
      row.embedding.forEach((value, place) => assert.ok(Math.abs(value - plain.data[number].embedding[place]) < 1e-6)),
    );
  },
  async errors() {
    await assert.rejects(client.embeddings.create({ model: "nosuch", input: "x" }), /nosuch/);
    await assert.rejects(client.chat.completions.create({ model: CASE.chat, messages: [] }), (error) => error.status === 400);
  },
};

let wrong = 0;
for (const [name, part] of Object.entries(parts)) {
  try {
    await part();
    console.log(`ok ${name}`);
  } catch (error) {
    wrong += 1;
    console.log(`FAILED ${name}: ${error.stack}`);
  }
}
process.exit(wrong ? 1 : 0);
