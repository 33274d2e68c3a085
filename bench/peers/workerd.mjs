// The Durable Objects that `bench peers` asks workerd for: a counter in a field, in storage read, in storage read and written.
import { DurableObject } from "cloudflare:workers";

export class Counter extends DurableObject {
  field = 0;

  async fetch(request) {
    switch (request.headers.get("x-function")) {
      case "field":
        return new Response(String(++this.field));
      case "field-read":
        return new Response(String(this.field));
      case "read":
        return new Response(String((await this.ctx.storage.get("count")) ?? 0));
      case "rmw": {
        const count = ((await this.ctx.storage.get("count")) ?? 0) + 1;
        // Not awaited, as its documentation advises: the output gate holds the answer until the write is done.
        this.ctx.storage.put("count", count);
        return new Response(String(count));
      }
      default:
        return new Response("no such function", { status: 404 });
    }
  }
}

export default {
  fetch(request, env) {
    const session = request.headers.get("x-session-id");
    return env.counters.get(env.counters.idFromName(session)).fetch(request);
  },
};
