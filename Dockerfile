# One image for all commands: `docker run IMAGE load --follow`.
# Node runs TypeScript directly, so there is no build step.

# On the machine's own platform: dependencies are JavaScript only, so those for all platforms are the same.
FROM --platform=$BUILDPLATFORM node:24-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
# No package that is needed at run time has an install script, or is optional: that would be TypeScript's compiler.
RUN npm ci --omit=dev --omit=optional --ignore-scripts

FROM node:24-slim
ENV NODE_ENV=production
WORKDIR /app
COPY --from=dependencies /app/node_modules ./node_modules
COPY package.json .gmrc ./
COPY bin ./bin
COPY migrations ./migrations
COPY src ./src
COPY tasks ./tasks
# Root owns the files, so the process cannot change its own code.
USER node
ENTRYPOINT ["node", "bin/masked-logins.js"]
CMD ["worker"]
