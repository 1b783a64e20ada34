# One image for all commands: `docker run IMAGE load --follow`.
# Node runs TypeScript directly, so there is no build step.

FROM node:24-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
# No runtime dependency has an install script.
RUN npm ci --omit=dev --ignore-scripts

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
