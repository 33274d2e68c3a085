// The virtual object that `bench peers` asks Restate for: a counter per key. Started by node with PORT in its environment, in the
// folder whose node_modules holds the SDK.
import * as restate from "@restatedev/restate-sdk";

const counter = restate.object({
  name: "counter",
  handlers: {
    rmw: async (ctx) => {
      const count = ((await ctx.get("count")) ?? 0) + 1;
      ctx.set("count", count);
      return count;
    },
    read: restate.handlers.object.shared(async (ctx) => (await ctx.get("count")) ?? 0),
  },
});

restate.serve({ services: [counter], port: Number(process.env.PORT) });
